"""Columns of texts: their encoders in a graph take indexes in one list of all categories instead."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

#: Follows the name of a column in the name of the graph's input.
CODE = ".code"


def encode(model: onnx.ModelProto) -> tuple[list[str], bool]:
    """Let a graph with inputs of texts take codes; the texts in the order of codes, and whether other
    texts are to be rejected."""
    categories = sorted({text for node in model.graph.node for text in _categories(node)})
    codes = {text: code for code, text in enumerate(categories)}
    rejects = False
    texts = [
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type == TensorProto.STRING
    ]
    for node in model.graph.node:
        for attribute in list(node.attribute):
            names = {"cats_strings": "cats_int64s", "keys_strings": "keys_int64s"}
            if attribute.name in names and _categories(node):
                numbers = [codes[text.decode()] for text in attribute.strings]
                node.attribute.remove(attribute)
                node.attribute.append(helper.make_attribute(names[attribute.name], numbers))
                zeros = [one.i for one in node.attribute if one.name == "zeros"]
                rejects |= node.op_type == "LabelEncoder" or zeros == [0]
            elif node.op_type == "Cast" and attribute.name == "to" and node.input[0] in texts:
                attribute.i = TensorProto.FLOAT
    for value in model.graph.input:
        if value.name in texts:
            name = value.name + CODE
            for node in model.graph.node:
                for place, source in enumerate(node.input):
                    if source == value.name:
                        node.input[place] = name
            value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1]))
    del model.graph.value_info[:]
    return categories, rejects


def _categories(node: onnx.NodeProto) -> list[str]:
    """The texts that an encoder of texts knows."""
    names = [attribute.name for attribute in node.attribute]
    if node.op_type == "LabelEncoder" and "values_strings" in names:
        return []
    known = ("cats_strings", "keys_strings")
    lists = [attribute.strings for attribute in node.attribute if attribute.name in known]
    return [text.decode() for texts in lists for text in texts]
