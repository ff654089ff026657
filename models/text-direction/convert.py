"""Makes the text direction model's data from the rapidocr-onnxruntime package.

    pip install -r requirements.txt && python convert.py

Writes assets/model.onnx, the version's golden.jsonl, and the tests' oracle.jsonl and bad.jsonl in
tests/data/text-direction (byte-identical on every run; README.md says what they are). Pictures are
made with Pillow and its own fonts; their answers are given by RapidOCR's TextClassifier, on what
OpenCV reads of the files.
"""
import base64
import io
import json
import pathlib
import shutil
from importlib import resources

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidocr_onnxruntime.ch_ppocr_cls import TextClassifier
from rapidocr_onnxruntime.utils import read_yaml

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests/data/text-direction"
PACKAGE = resources.files("rapidocr_onnxruntime")
MODEL = PACKAGE / "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"

BLACK, WHITE, NAVY, RED, YELLOW = (0, 0, 0), (255, 255, 255), (20, 30, 110), (200, 30, 20), (250, 220, 40)

# Of JPEG files.
HIGH = {"quality": 95, "subsampling": 0}
USUAL = {"quality": 75}
LOW = {"quality": 25}

# Name: text, size in pixels (0: Pillow's bitmap font), margin, ink, paper, mode, options of the file, which
# is a JPEG if they name a quality. Many texts look much the same upside down, so that scores are not all 1.
LINES = {
    "plain": ("Hello world", 32, 6, BLACK, WHITE, "RGB", {}),
    "PNG to be turned by 180": ("suns", 32, 6, (140, 140, 140), (150, 150, 150), "RGB", {"orientation": 3}),
    "coloured": ("Invoice 2024-17", 28, 4, RED, YELLOW, "RGB", {}),
    "light on dark": ("SOS NOON", 40, 8, WHITE, NAVY, "RGB", {}),
    "small": ("pod dop", 11, 2, BLACK, WHITE, "RGB", {}),
    "bitmap font": ("Total: 12.50 EUR", 0, 2, BLACK, WHITE, "RGB", {}),
    "large": ("69 oxo 69", 110, 10, NAVY, WHITE, "RGB", {}),
    "half": ("HIOX NSZ", 60, 6, BLACK, YELLOW, "RGB", {}),
    "narrow": ("Ag", 36, 4, BLACK, WHITE, "RGB", {}),
    "one letter": ("7", 30, 6, BLACK, WHITE, "RGB", {}),
    "very wide": ("All happy families are alike; each unhappy family is unhappy in its own way.", 24, 3, BLACK, WHITE, "RGB", {}),
    "grey": ("NOXON", 26, 5, (60, 60, 60), (200, 200, 200), "L", {}),
    "two levels": ("H I O", 26, 5, BLACK, WHITE, "1", {}),
    "palette": ("Zoom", 30, 5, RED, (220, 235, 255), "P", {}),
    "palette with transparency": ("un nu", 30, 5, BLACK, WHITE, "P", {"transparency": 0}),
    "RGBA": ("suns", 30, 5, NAVY, WHITE, "RGBA", {}),
    "grey and alpha": ("6 o 9", 30, 5, BLACK, WHITE, "LA", {}),
    "16 bits": ("OXO", 30, 5, BLACK, WHITE, "I;16", {}),
    "noise": ("SIS", 24, 3, BLACK, (190, 190, 190), "RGB", {}),
    "CMYK JPEG": ("oxo xox", 32, 6, NAVY, WHITE, "CMYK", USUAL),
    "JPEG of high quality": ("pod dop", 28, 4, RED, YELLOW, "RGB", HIGH),
    "JPEG of low quality": ("SOS NOON", 40, 8, WHITE, NAVY, "RGB", LOW),
    "grey JPEG": ("NOXON", 26, 5, BLACK, WHITE, "L", USUAL),
    "progressive JPEG": ("HOH", 44, 5, NAVY, YELLOW, "RGB", {**USUAL, "progressive": True}),
    "4:2:2 JPEG": ("69 oxo 69", 37, 4, RED, (200, 240, 255), "RGB", {**USUAL, "subsampling": 1}),
    "large JPEG": ("un nu", 90, 20, NAVY, (230, 225, 210), "RGB", USUAL),
    "JPEG to be turned by 180": ("Orientation 3", 30, 5, BLACK, WHITE, "RGB", {**USUAL, "orientation": 3}),
    "JPEG to be turned by 90": ("Orientation 6", 30, 5, BLACK, WHITE, "RGB", {**USUAL, "orientation": 6}),
}

# Not lines of text: odd ratios and sizes, but pictures all the same.
SHAPES = [(1, 1), (1, 300), (300, 1), (8192, 2)]

# In the artifact, small and exact.
GOLDEN = ["plain", "narrow", "palette"]


def render(text, size, margin, ink, paper):
    """A line of text with some paper around it."""
    font = ImageFont.load_default(size) if size else ImageFont.load_default_imagefont()
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, ink, font)
    return picture


def to_mode(picture, mode):
    """The picture in one of Pillow's modes; what is transparent depends on the place."""
    if mode == "P":
        return picture.quantize(16)
    if mode == "I;16":
        return Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 251 + 77)
    picture = picture.convert(mode)
    if mode in ("RGBA", "LA"):
        across = np.linspace(0, 255, picture.width).astype(np.uint8)
        picture.putalpha(Image.fromarray(np.tile(across, (picture.height, 1))))
    return picture


def encode(picture, options):
    """The bytes of a PNG file, or of a JPEG file if there is a quality."""
    options, file = dict(options), io.BytesIO()
    if "orientation" in options:
        exif = Image.Exif()
        exif[0x0112] = options.pop("orientation")
        options["exif"] = exif
    picture.save(file, "JPEG" if "quality" in options else "PNG", optimize=True, **options)
    return file.getvalue()


def files():
    """(name, bytes) of every picture, each line upright and turned."""
    random = np.random.default_rng(0)
    for name, (text, size, margin, ink, paper, mode, options) in LINES.items():
        picture = render(text, size, margin, ink, paper)
        if name == "half":  # which many implementations know a short cut for
            picture = picture.resize((384, 96))
        if name == "noise":
            noise = random.normal(0, 25, (picture.height, picture.width, 3))
            picture = Image.fromarray(np.clip(np.array(picture) + noise, 0, 255).astype(np.uint8))
        for degrees in (0, 180):
            yield f"{name}, {degrees}", encode(to_mode(picture.rotate(degrees), mode), options)
    for width, height in SHAPES:
        levels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if width == 8192:
            levels[:] = (np.arange(width) % 251)[None, :, None]
        yield f"{width} by {height}", encode(Image.fromarray(levels), {})


def bad_files():
    """(name, bytes) of what has to be refused."""
    picture = render("Hello world", 32, 6, BLACK, WHITE)
    png, jpeg = encode(picture, {}), encode(picture, USUAL)
    gif = io.BytesIO()
    picture.save(gif, "GIF")
    yield "nothing", b""
    yield "text", b"Hello world"
    yield "GIF", gif.getvalue()
    for name, file in (("PNG", png), ("JPEG", jpeg)):
        for share in (1, 10, 50, 90):
            yield f"{share} % of a {name}", file[: len(file) * share // 100]
    yield "PNG with a damaged byte", png[:1000] + bytes([png[1000] ^ 1]) + png[1001:]
    yield "bomb of 256 million pixels", encode(Image.new("1", (16000, 16000)), {})
    yield "bomb of 64 million pixels", encode(Image.new("1", (8000, 8000)), {})
    yield "picture that is too wide", encode(Image.new("1", (8193, 1)), {})
    yield "PNG without pixels", png.replace(b"IHDR" + png[16:24], b"IHDR" + bytes(8))


def main():
    (HERE / "assets").mkdir(exist_ok=True)
    TESTS.mkdir(exist_ok=True)
    shutil.copyfile(MODEL, HERE / "assets/model.onnx")
    settings = read_yaml(PACKAGE / "config.yaml")
    classifier = TextClassifier({**settings["Cls"], **settings["Global"], "model_path": str(MODEL)})

    golden, oracle = [], []
    for name, file in files():
        pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        _turned, [[label, score]], _seconds = classifier(pixels)
        image, score = base64.b64encode(file).decode(), round(float(score), 7)
        print(f"{name}: {len(file)} bytes, {pixels.shape[1]} by {pixels.shape[0]}: {label}, {score}")
        oracle.append({"name": name, "image": image, "label": label, "score": score})
        if name.rsplit(",")[0] in GOLDEN:
            golden.append({"inputs": {"image": image}, "outputs": {"label": label, "score": score}})
    bad = [{"name": name, "image": base64.b64encode(file).decode()} for name, file in bad_files()]
    written = {HERE / "1.0.0/golden.jsonl": golden, TESTS / "oracle.jsonl": oracle, TESTS / "bad.jsonl": bad}
    for path, lines in written.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        path.write_bytes(text.encode())
        print(f"{path.name}: {len(lines)} lines, {len(text)} bytes")


main()
