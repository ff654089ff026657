"""The inputs and outputs of an ONNX graph, and what they are called when they are served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import onnx
from numpy.typing import NDArray

from .errors import ExportError, ModelError

Array = NDArray[Any]

#: The longest name of a field.
MAX_NAME = 64

_SERVED = (
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64"
).split()


@dataclass(frozen=True)
class Value:
    """An input or an output: its name in the graph and as a field, its type, and its dimensions."""

    name: str
    field: str
    dtype: numpy.dtype[Any]
    shape: tuple[int | None, ...]


def field_name(name: str) -> str:
    """The name of the field that a server has for an input or an output of this name."""
    field = re.sub(r"[^A-Za-z0-9]", "_", name)
    if not re.match(r"[A-Za-z]", field):
        field = "x_" + field
    return field[:MAX_NAME]


def load(path: Path) -> onnx.ModelProto:
    """Read and check a file."""
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}: give the path of an ONNX file") from error
    except Exception as error:  # protobuf and onnx have errors of their own kinds
        raise ModelError(f"{path} is not a valid ONNX file: {_first_line(error)}") from error
    return model


def inputs(model: onnx.ModelProto) -> list[Value]:
    """The inputs, without those that only name a weight."""
    weights = {weight.name for weight in model.graph.initializer}
    return [_value(value) for value in model.graph.input if value.name not in weights]


def outputs(model: onnx.ModelProto) -> list[Value]:
    """The outputs."""
    return [_value(value) for value in model.graph.output]


def keep_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Remove all other outputs."""
    wanted = set(names)
    kept = [value for value in model.graph.output if value.name in wanted]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _value(value: onnx.ValueInfoProto) -> Value:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ExportError(f"`{value.name}` of the graph is a {kind}: only tensors are served")
    tensor = value.type.tensor_type
    try:
        dtype = numpy.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError) as error:
        raise ExportError(f"`{value.name}` of the graph has elements of no known type") from error
    if dtype.name not in _SERVED:
        raise ExportError(
            f"`{value.name}` of the graph has elements of type {dtype}, which are not served: export "
            "the model with numbers"
        )
    shape = tuple(
        dimension.dim_value if dimension.dim_value > 0 else None for dimension in tensor.shape.dim
    )
    return Value(value.name, field_name(value.name), dtype, shape)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
