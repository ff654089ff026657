"""Makes the small models beside it, their manifests, and what they are compared with.

    pip install -r requirements.txt && python make.py

Expected outputs are computed by scikit-learn, Hugging Face's tokenizers, Pillow, NumPy and onnxruntime.
All data is made here, but for the iris data that scikit-learn ships (R. A. Fisher, 1936; public domain).
"""

import base64
import io
import json
import pathlib

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

FOLDER = pathlib.Path(__file__).parent
OPSET = 17


def write_lines(name, lines):
    (FOLDER / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_json(name, value):
    (FOLDER / name).write_text(json.dumps(value, indent=1) + "\n")


def save(name, model):
    onnx.checker.check_model(model)
    (FOLDER / name).write_bytes(model.SerializeToString())


def graph(name, nodes, inputs, outputs, constants):
    constants = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    made = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    save(name, helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8))


def run(name, inputs, outputs=None):
    session = onnxruntime.InferenceSession(str(FOLDER / name), providers=["CPUExecutionProvider"])
    return session.run(outputs, inputs)


def steps():
    """Steps of postprocessing."""
    from scipy.special import expit, softmax
    from sklearn.preprocessing import normalize

    generator = numpy.random.default_rng(1)
    logits = generator.normal(0, 4, (3, 5)).astype("f4")
    order = numpy.argsort(-logits, axis=1, kind="stable")
    tokens = generator.normal(0, 1, (2, 4, 3)).astype("f4")
    mask = numpy.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    mean = numpy.ma.array(tokens, mask=numpy.repeat(mask[:, :, None] == 0, 3, axis=2)).mean(axis=1)
    write_json(
        "steps.json",
        {
            "logits": logits.tolist(),
            "softmax": softmax(logits.astype("f8"), axis=1).tolist(),
            "sigmoid": expit(logits.astype("f8")).tolist(),
            "l2_norm": normalize(logits.astype("f8")).tolist(),
            "argmax": logits.argmax(axis=1).tolist(),
            "top_3": numpy.take_along_axis(logits, order, 1)[:, :3].tolist(),
            "top_3_indexes": order[:, :3].tolist(),
            "tokens": tokens.tolist(),
            "mask": mask.tolist(),
            "mean_pool": mean.data.tolist(),
            "cls_pool": tokens[:, 0].tolist(),
        },
    )


def species():
    """A pipeline of scikit-learn with labels that are texts, exported as skl2onnx does it by default."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_iris()
    rows, names = data.data.astype("f4"), data.target_names[data.target]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, names)
    model = to_onnx(pipeline, rows[:1], target_opset=OPSET)
    save("species.onnx", model)
    chosen = rows[::15]
    lines = []
    for row, probabilities in zip(chosen, pipeline.predict_proba(chosen)):
        order = numpy.argsort(-probabilities)
        outputs = {
            "species": str(pipeline.classes_[order[0]]),
            "probabilities": probabilities.tolist(),
            "best": [str(pipeline.classes_[index]) for index in order[:2]],
            "setosa": float(probabilities[0]),
            "is_setosa": bool(probabilities[0] >= 0.5),
        }
        lines.append({"inputs": {"measures": row.tolist()}, "outputs": outputs})
    write_lines("species.jsonl", lines)


def external():
    """A graph whose weights are in another file."""
    generator = numpy.random.default_rng(14)
    weights = generator.normal(0, 1, (4, 3)).astype("f4")
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
    ]
    nodes = [helper.make_node("MatMul", ["x", "weights"], ["y"])]
    made = helper.make_graph(nodes, "graph", values[:1], values[1:], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    (FOLDER / "external.onnx.data").unlink(missing_ok=True)
    onnx.save(
        model,
        str(FOLDER / "external.onnx"),
        save_as_external_data=True,
        location="external.onnx.data",
        size_threshold=0,
    )
    rows = generator.normal(0, 1, (3, 4)).astype("f4")
    lines = [
        {"inputs": {"x": row.tolist()}, "outputs": {"y": (row.astype("f8") @ weights).tolist()}} for row in rows
    ]
    write_lines("external.jsonl", lines)


def dynamic():
    """A graph that quantises its values by the range that they have in a call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    generator = numpy.random.default_rng(15)
    constants = {
        "first": generator.normal(0, 1, (8, 16)).astype("f4"),
        "second": generator.normal(0, 1, (16, 3)).astype("f4"),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["between"]),
        helper.make_node("Relu", ["between"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])]
    graph("dynamic.onnx", nodes, inputs, outputs, constants)
    path = str(FOLDER / "dynamic.onnx")
    quantize_dynamic(path, path, weight_type=QuantType.QInt8)
    rows = [generator.normal(0, 10**power, 8).astype("f4") for power in (-2, 2, 0, -1, 1)]
    lines = []
    for row in rows:
        (y,) = run("dynamic.onnx", {"x": row[None]})
        lines.append({"inputs": {"x": row.tolist()}, "outputs": {"y": y[0].tolist()}})
    write_lines("dynamic.jsonl", lines)


def people():
    """Columns of numbers and categories before a classifier; scikit-learn prepares them for the oracle."""
    import pandas
    from skl2onnx import to_onnx
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    generator = numpy.random.default_rng(2)
    count = 400
    frame = pandas.DataFrame(
        {
            "age": generator.integers(17, 90, count).astype("f8"),
            "hours": generator.normal(38, 10, count).round(1),
            "job": generator.choice(["clerk", "farmer", "nurse", "other"], count),
            "region": generator.choice([1, 2, 5], count),
        }
    )
    high = frame.age + 2 * frame.hours + 30 * (frame.job == "nurse") + 8 * frame.region > 140
    frame.loc[generator.random(count) < 0.1, "age"] = numpy.nan
    prepare = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["age", "hours"]),
            ("job", OneHotEncoder(handle_unknown="ignore"), ["job"]),
            ("region", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["region"]),
        ],
        sparse_threshold=0,
    )
    columns = prepare.fit_transform(frame).astype("f4")
    forest = RandomForestClassifier(8, max_depth=4, random_state=3).fit(columns, high.astype(int))
    model = to_onnx(forest, columns[:1], target_opset=OPSET, options={"zipmap": False})
    save("people.onnx", model)
    imputer, scaler = prepare.named_transformers_["numbers"]
    jobs = prepare.named_transformers_["job"].categories_[0].tolist()
    regions = [int(region) for region in prepare.named_transformers_["region"].categories_[0]]
    (FOLDER / "people.toml").write_text(
        f"""[about]
description = "whether a person's income is high"
licenses = "MIT"

[[inputs]]
name = "age"
description = "the age"
unit = "years"
maximum = 120

[[inputs]]
name = "hours"
description = "working time"
unit = "hours a week"
minimum = 0
maximum = 168

[[inputs]]
name = "job"
description = "the occupation"

[[inputs]]
name = "region"
description = "the number of the region"

[[table]]
graph = "X"
columns = [
    {{ input = "age", missing = -1, fill = {imputer.statistics_[0]}, mean = {scaler.mean_[0]}, std = {scaler.scale_[0]} }},
    {{ input = "hours", mean = {scaler.mean_[1]}, std = {scaler.scale_[1]} }},
    {{ input = "job", categories = {json.dumps(jobs)}, encoding = "one_hot", unknown = "zeros" }},
    {{ input = "region", categories = {json.dumps(regions)}, unknown = {{ code = -1 }} }},
]

[[outputs]]
name = "income"
graph = "label"
description = "the class of the income"
steps = [{{ labels = ["low", "high"] }}]

[[outputs]]
name = "score"
graph = "probabilities"
description = "the probability of a high income"
steps = [{{ element = 1 }}]
minimum = 0
maximum = 1
"""
    )
    rows = frame.iloc[:16].copy()
    rows.loc[len(rows)] = [40.0, 39.5, "pilot", 2]
    rows.loc[len(rows)] = [41.0, 20.0, "nurse", 9]
    prepared = prepare.transform(rows).astype("f4")
    lines = []
    for (_, row), probabilities in zip(rows.iterrows(), forest.predict_proba(prepared)):
        inputs = {"hours": row.hours, "job": row.job, "region": int(row.region)}
        if not numpy.isnan(row.age):
            inputs["age"] = row.age
        score = float(probabilities[1])
        outputs = {"income": "high" if score > 0.5 else "low", "score": score}
        lines.append({"inputs": inputs, "outputs": outputs})
    write_lines("people.jsonl", lines)
    cells = [
        [None if numpy.isnan(row.age) else row.age, row.hours, row.job, int(row.region)]
        for _, row in rows.iterrows()
    ]
    write_json("columns.json", {"rows": cells, "columns": prepared.tolist()})


CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "A model server runs every version in a sandbox of its own.",
    "Naïve café façade: coöperate, she said — twice!",
    "Numbers like 3.14 and 2,718 are split into digits or kept together.",
    "Ein Satz mit Umlauten: Größe, Äpfel, Übung.",
    "不 means no; 你好 means hello.",
    "emails@example.com, URLs http://example.com/a?b=c and don't-break words",
] * 4
TEXTS = CORPUS[:7] + ["", " ", "unseen wordforms everywhere", "a" * 90, "\tTabs\nand lines  ", "🙂 emoji ok"]
MAX_LENGTH = 16


def tokenizers_of_each_kind():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=160, special_tokens=["<pad>", "<unk>", "</s>"], unk_token="<unk>"),
    )
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", unigram.token_to_id("</s>"))]
    )
    return {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}


def texts():
    """Tokenizers of each kind, and a small encoder of texts whose tokens see each other."""
    kinds = tokenizers_of_each_kind()
    expected = {}
    for name, tokenizer in kinds.items():
        tokenizer.save(str(FOLDER / f"{name}.json"), pretty=False)
        tokenizer.enable_truncation(MAX_LENGTH)
        expected[name] = [
            {"text": text, "ids": encoding.ids, "types": encoding.type_ids}
            for text, encoding in zip(TEXTS, tokenizer.encode_batch(TEXTS))
        ]
    write_json("tokens.json", {"max_length": MAX_LENGTH, "tokenizers": expected})

    generator = numpy.random.default_rng(4)
    features, classes = 12, 3
    words = generator.normal(0, 0.6, (kinds["wordpiece"].get_vocab_size(), features)).astype("f4")
    constants = {
        "words": words,
        "types": generator.normal(0, 0.3, (2, features)).astype("f4"),
        "positions": generator.normal(0, 0.3, (MAX_LENGTH, features)).astype("f4"),
        "mix": generator.normal(0, 0.8, (features, features)).astype("f4"),
        "head": generator.normal(0, 1, (features, classes)).astype("f4"),
        "large": numpy.array(10_000, "f4"),
        "one": numpy.array(1, "f4"),
        "axis": numpy.array([1], "i8"),
        "first": numpy.array(0, "i8"),
        "step": numpy.array(1, "i8"),
        "end": numpy.array(1, "i8"),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["word"]),
        node("Gather", ["types", "token_type_ids"], ["type"]),
        node("Shape", ["input_ids"], ["shape"]),
        node("Gather", ["shape", "end"], ["length"]),
        node("Range", ["first", "length", "step"], ["places"]),
        node("Gather", ["positions", "places"], ["position"]),
        node("Add", ["word", "type"], ["typed"]),
        node("Add", ["typed", "position"], ["x"]),
        node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        node("MatMul", ["x", "xt"], ["scores"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "axis"], ["wide"]),
        node("Sub", ["one", "wide"], ["hidden"]),
        node("Mul", ["hidden", "large"], ["penalty"]),
        node("Sub", ["scores", "penalty"], ["masked"]),
        node("Softmax", ["masked"], ["attention"], axis=-1),
        node("MatMul", ["attention", "x"], ["seen"]),
        node("MatMul", ["seen", "mix"], ["mixed"]),
        node("Tanh", ["mixed"], ["last_hidden_state"]),
        node("Gather", ["last_hidden_state", "first"], ["cls"], axis=1),
        node("MatMul", ["cls", "head"], ["logits"]),
    ]
    tokens = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ["input_ids", "attention_mask", "token_type_ids"]
    ]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", features]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]),
    ]
    graph("encoder.onnx", nodes, tokens, outputs, constants)
    labels = ["no", "perhaps", "yes"]
    (FOLDER / "labels.txt").write_text("\n".join(labels) + "\n")
    lines = []
    tokenizer = kinds["wordpiece"]
    for text in [text for text in TEXTS if text.strip()]:
        encoding = tokenizer.encode(text.strip())
        row = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
        hidden, logits = run("encoder.onnx", {name: numpy.array([ids]) for name, ids in row.items()})
        mean = hidden[0].astype("f8").mean(axis=0)
        exponents = numpy.exp(logits[0].astype("f8"))
        lines.append(
            {
                "inputs": {"text": text},
                "outputs": {
                    "answer": labels[int(logits[0].argmax())],
                    "scores": (exponents / exponents.sum()).tolist(),
                    "embedding": (mean / numpy.linalg.norm(mean)).tolist(),
                },
            }
        )
    write_lines("encoder.jsonl", lines)


def picture(height, width, seed):
    """A picture with smooth parts, edges and noise."""
    generator = numpy.random.default_rng(seed)
    rows, columns = numpy.mgrid[0:height, 0:width]
    levels = numpy.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 4 % 256], axis=2)
    levels[height // 4 : height // 2, width // 3 : width // 2] = [250, 10, 120]
    levels += generator.normal(0, 6, levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype("u1"), "RGB")


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images():
    """Resized pictures, and a small network for pictures."""
    small = picture(23, 31, 5)
    sizes = [(9, 7), (40, 60), (23, 12), (50, 31), (1, 1)]
    resized = []
    for filter_name, kind in [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]:
        for height, width in sizes:
            pixels = numpy.asarray(small.resize((width, height), kind))
            resized.append({"filter": filter_name, "size": [height, width], "levels": pixels.tobytes().hex()})
    write_json(
        "pixels.json",
        {"height": 23, "width": 31, "levels": numpy.asarray(small).tobytes().hex(), "resized": resized},
    )

    generator = numpy.random.default_rng(6)
    constants = {
        "kernels": generator.normal(0, 0.2, (6, 3, 5, 5)).astype("f4"),
        "bias": generator.normal(0, 0.2, 6).astype("f4"),
        "head": generator.normal(0, 1.5, (6, 4)).astype("f4"),
        "shape": numpy.array([0, 6], "i8"),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["pixels", "kernels", "bias"], ["windows"], kernel_shape=[5, 5], strides=[2, 2]),
        node("Relu", ["windows"], ["active"]),
        node("GlobalAveragePool", ["active"], ["means"]),
        node("Reshape", ["means", "shape"], ["flat"]),
        node("MatMul", ["flat", "head"], ["logits"]),
    ]
    pixels = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])]
    logits = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])]
    graph("picture.onnx", nodes, pixels, logits, constants)

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    lines = []
    palette = picture(45, 64, 9).quantize(32)
    alpha = picture(40, 40, 10).convert("RGBA")
    alpha.putalpha(77)
    for file in [
        encoded(picture(50, 81, 7), "PNG"),
        encoded(picture(90, 47, 8), "JPEG", quality=95, subsampling=0),
        encoded(picture(64, 64, 11), "JPEG", quality=90, progressive=True, subsampling=0),
        encoded(picture(50, 60, 12), "WEBP", lossless=True),
        encoded(palette, "PNG"),
        encoded(alpha, "PNG"),
        encoded(picture(36, 36, 13).convert("L"), "JPEG", quality=90),
    ]:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        width, height = image.size
        side = 36
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        image = image.resize(size, Image.Resampling.BILINEAR)
        # As torchvision's CenterCrop.
        left, top = int(round((size[0] - 32) / 2.0)), int(round((size[1] - 32) / 2.0))
        image = image.crop((left, top, left + 32, top + 32))
        levels = (numpy.asarray(image).astype("f8") / 255 - mean) / std
        row = levels.transpose(2, 0, 1)[None].astype("f4")
        (logits,) = run("picture.onnx", {"pixels": row})
        exponents = numpy.exp(logits[0].astype("f8"))
        probabilities = exponents / exponents.sum()
        order = numpy.argsort(-probabilities, kind="stable")
        labels = ["ant", "bee", "cat", "dog"]
        outputs = {"labels": [labels[index] for index in order[:3]], "scores": probabilities[order[:3]].tolist()}
        lines.append({"inputs": {"image": base64.b64encode(file).decode()}, "outputs": outputs})
    write_lines("picture.jsonl", lines)


def main():
    steps()
    species()
    people()
    texts()
    images()
    external()
    dynamic()


if __name__ == "__main__":
    main()
