"""Changes to the inputs and outputs of a graph, so that a row is what a caller would write.

A column of its own is an input of one number for each row, `{"age": 31}`, and not of a list of one number.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

#: The first version of ONNX in which axes are inputs of operators.
AXES_ARE_INPUTS = 13


def split(model: onnx.ModelProto, name: str, columns: Sequence[str]) -> None:
    """Replace an input of rows of numbers by an input for each column."""
    graph = model.graph
    nodes = [reshape(model, "Unsqueeze", column, f"{column}.column", 1) for column in columns]
    nodes.append(
        helper.make_node("Concat", [f"{column}.column" for column in columns], [name], name=name, axis=1)
    )
    kept = [value for value in graph.input if value.name != name]
    del graph.input[:]
    graph.input.extend(
        helper.make_tensor_value_info(column, TensorProto.FLOAT, ["rows"]) for column in columns
    )
    graph.input.extend(kept)
    _prepend(graph, nodes)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove inputs that nothing takes: columns that a selection drops."""
    taken = {name for node in model.graph.node for name in node.input}
    kept = [value for value in model.graph.input if value.name in taken]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def flatten_inputs(model: onnx.ModelProto, kept: Collection[str] = ()) -> None:
    """Let all inputs of rows of one number be inputs of numbers, but for those that are kept."""
    graph = model.graph
    nodes = []
    for value in graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if value.name in kept or len(dimensions) != 2 or dimensions[1].dim_value != 1:
            continue
        column = f"{value.name}.column"
        for node in graph.node:
            for place, source in enumerate(node.input):
                if source == value.name:
                    node.input[place] = column
        nodes.append(reshape(model, "Unsqueeze", value.name, column, 1))
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, ["rows"]))
    _prepend(graph, nodes)


def flatten_output(model: onnx.ModelProto, name: str) -> None:
    """Let an output of rows of one number be an output of numbers."""
    graph = model.graph
    inner = f"{name}.column"
    for node in graph.node:
        for places in (node.input, node.output):
            for place, value in enumerate(places):
                if value == name:
                    places[place] = inner
    graph.node.append(reshape(model, "Squeeze", inner, name, 1))
    for value in graph.output:
        if value.name == name:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(name, kind, ["rows"]))


def rename_output(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give an output another name."""
    graph = model.graph
    for node in graph.node:
        for places in (node.input, node.output):
            for place, value in enumerate(places):
                if value == old:
                    places[place] = new
    for output in graph.output:
        if output.name == old:
            output.name = new


def reshape(
    model: onnx.ModelProto, operation: str, source: str, output: str, axis: int
) -> onnx.NodeProto:
    """A node that adds or removes a dimension, in the form of the model's version of ONNX."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        model.opset_import.append(helper.make_opsetid("", AXES_ARE_INPUTS))
    elif max(versions) < AXES_ARE_INPUTS:
        return helper.make_node(operation, [source], [output], name=output, axes=[axis])
    name = f"guesthouse.axis{axis}"
    if not any(weight.name == name for weight in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(numpy.array([axis], "int64"), name))
    return helper.make_node(operation, [source, name], [output], name=output)


def _prepend(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
