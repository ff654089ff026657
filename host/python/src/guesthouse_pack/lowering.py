"""Rewrites operators of `ai.onnx.ml` that guests lack into those of ONNX itself.

One-hot encoding, imputation, the extraction of features and text labels are expressed by comparisons,
selections and indices. Text labels become their index among the classes. Operators that are not known
here stay: `guesthouse pack` names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

from .columns import reshape

#: The largest key of a table.
MAX_KEY = 1 << 16

#: The domain of the operators of classic machine learning.
ML = "ai.onnx.ml"


def lower(model: onnx.ModelProto) -> None:
    """Rewrite a graph in place."""
    _Lowering(model).run()


def number_classes(model: onnx.ModelProto, classes: Sequence[str]) -> None:
    """Let a classifier return the index of a class among these instead of its text."""
    index = {text: number for number, text in enumerate(classes)}
    graph = model.graph
    for node in graph.node:
        for attribute in list(node.attribute):
            if attribute.name == "classlabels_strings":
                name = "classlabels_int64s" if node.op_type.startswith("Tree") else "classlabels_ints"
                numbers = [index[text.decode()] for text in attribute.strings]
                node.attribute.remove(attribute)
                node.attribute.append(helper.make_attribute(name, numbers))
            elif attribute.name in ("values_strings", "keys_strings"):
                name = attribute.name.replace("strings", "int64s")
                numbers = [index[text.decode()] for text in attribute.strings]
                node.attribute.remove(attribute)
                node.attribute.append(helper.make_attribute(name, numbers))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.STRING:
                attribute.i = TensorProto.INT64
    for weight in graph.initializer:
        if weight.data_type == TensorProto.STRING:
            texts = numpy_helper.to_array(weight)
            places = numpy.array([index[_text(one)] for one in texts.ravel()], "int64")
            weight.CopyFrom(numpy_helper.from_array(places.reshape(texts.shape), weight.name))
    for value in (*graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.STRING:
            value.type.tensor_type.elem_type = TensorProto.INT64


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Lowering:
    """The rewriting of one graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.nodes: list[onnx.NodeProto] = []
        self.ranks = {weight.name: len(weight.dims) for weight in model.graph.initializer}

    def run(self) -> None:
        rules = {
            "OneHotEncoder": self.one_hot,
            "Imputer": self.impute,
            "ArrayFeatureExtractor": self.extract,
            "FeatureVectorizer": self.vectorize,
            "Binarizer": self.binarize,
            "LabelEncoder": self.look_up,
        }
        for node in list(self.graph.node):
            rule = rules.get(node.op_type) if node.domain == ML else None
            if rule is None or not rule(node, _attributes(node)):
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def add(self, operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operation, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.graph.initializer.append(numpy_helper.from_array(numpy.asarray(value), name))
        return name

    def one_hot(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        categories = attributes.get("cats_int64s")
        if not categories:
            return False
        (source,), (output,) = node.input, node.output
        # In single precision, which holds the categories of any sensible encoding exactly.
        numbers = self.add("Cast", [source], f"{output}.numbers", to=TensorProto.FLOAT)
        wide = f"{output}.wide"
        self.nodes.append(reshape(self.model, "Unsqueeze", numbers, wide, 2))
        known = self.constant(f"{output}.categories", numpy.array(categories, "float32"))
        equal = self.add("Equal", [wide, known], f"{output}.equal")
        self.add("Cast", [equal], output, to=TensorProto.FLOAT)
        return True

    def impute(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        (source,), (output,) = node.input, node.output
        if "imputed_value_floats" in attributes:
            dtype, values = "float32", attributes["imputed_value_floats"]
            missing = attributes.get("replaced_value_float", 0.0)
        elif "imputed_value_int64s" in attributes:
            dtype, values = "int64", attributes["imputed_value_int64s"]
            missing = attributes.get("replaced_value_int64", 0)
        else:
            return False
        if dtype == "float32" and numpy.isnan(missing):
            absent = self.add("IsNaN", [source], f"{output}.absent")
        else:
            value = self.constant(f"{output}.missing", numpy.array(missing, dtype))
            absent = self.add("Equal", [source, value], f"{output}.absent")
        filled = self.constant(f"{output}.values", numpy.array(values, dtype))
        self.add("Where", [absent, filled, source], output)
        return True

    def look_up(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        keys = attributes.get("keys_int64s")
        name = next((name for name in ("values_int64s", "values_floats") if name in attributes), None)
        if not keys or name is None or min(keys) < 0 or max(keys) > MAX_KEY:
            return False
        dtype = "int64" if name == "values_int64s" else "float32"
        # The default is that of the operator.
        default = attributes.get("default_" + name.removeprefix("values_").rstrip("s"), -1)
        table = numpy.full(max(keys) + 1, default, dtype)
        table[list(keys)] = attributes[name]
        (source,), (output,) = node.input, node.output
        places = self.add("Cast", [source], f"{output}.places", to=TensorProto.INT64)
        values = self.constant(f"{output}.values", table)
        self.add("Gather", [values, places], output, axis=0)
        return True

    def extract(self, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
        (source, places), (output,) = node.input, node.output
        if self.ranks.get(source) == 1:
            shape = self.constant(f"{output}.row", numpy.array([1, -1], "int64"))
            source = self.add("Reshape", [source, shape], f"{output}.table")
        shape = self.constant(f"{output}.flat", numpy.array([-1], "int64"))
        flat = self.add("Reshape", [places, shape], f"{output}.places")
        self.add("Gather", [source, flat], output, axis=-1)
        return True

    def vectorize(self, node: onnx.NodeProto, _attributes: dict[str, Any]) -> bool:
        (output,) = node.output
        casts = [
            self.add("Cast", [source], f"{output}.part{index}", to=TensorProto.FLOAT)
            for index, source in enumerate(node.input)
        ]
        self.add("Concat", casts, output, axis=1)
        return True

    def binarize(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        (source,), (output,) = node.input, node.output
        value = numpy.array(attributes.get("threshold", 0.0), "float32")
        threshold = self.constant(f"{output}.threshold", value)
        above = self.add("Greater", [source, threshold], f"{output}.above")
        self.add("Cast", [above], output, to=TensorProto.FLOAT)
        return True


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
