"""Models as the servers that the benchmark compares with run them."""

import json
import re

import numpy
import onnxruntime
import pydantic


class Text(pydantic.BaseModel):
    text: str


def session(path):
    """A session on one thread, because each server has a worker for every core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


class TensorModel:
    """The model of a case on raw bytes."""

    def __init__(self, folder, case):
        cases = json.loads((folder / "cases.json").read_text())
        (case,) = [known for known in cases if known["case"] == case]
        self.session = session(folder / f"{case['model']}.onnx")
        datatypes = {"fp32": numpy.dtype("f4"), "int64": numpy.dtype("i8")}
        self.inputs = [
            (tensor["name"], datatypes[tensor["datatype"]], tensor["shape"]) for tensor in case["inputs"]
        ]
        self.output = case["outputs"][0]["name"]

    def run(self, body):
        inputs, offset = {}, 0
        for name, datatype, shape in self.inputs:
            count = int(numpy.prod(shape))
            inputs[name] = numpy.frombuffer(body, datatype, count, offset).reshape(shape)
            offset += count * datatype.itemsize
        (output,) = self.session.run([self.output], inputs)
        return output.tobytes()


class Toxicity:
    """The model `toxicity`: the terms of a text with their weights, and the ONNX classifier."""

    def __init__(self, folder):
        lines = (folder / "vocabulary.tsv").read_text().splitlines()
        terms = [line.split("\t") for line in lines]
        self.terms = {term: (index, float(idf)) for index, (term, idf) in enumerate(terms)}
        self.tokens = re.compile(r"(?u)\b\w\w+\b")
        self.session = session(folder / "model.onnx")
        self.names = [value.name for value in self.session.get_inputs()]

    def score(self, text):
        weights = {}
        for token in self.tokens.findall(text.strip().lower()):
            if token in self.terms:
                index, idf = self.terms[token]
                weights[index] = weights.get(index, 0.0) + idf
        norm = sum(weight * weight for weight in weights.values()) ** 0.5
        terms = numpy.array([sorted(weights) or [0]])
        values = [weights[index] / norm for index in sorted(weights)] or [0.0]
        inputs = dict(zip(self.names, (terms, numpy.array([values], "f4"))))
        return float(self.session.run(None, inputs)[0].ravel()[0])
