"""Other programs that run ONNX: onnxruntime, if it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import onnx

from .errors import ExportError
from .extras import optional, require
from .graph import Array


def onnxruntime_outputs(
    model: onnx.ModelProto | Path, inputs: Mapping[str, Array]
) -> dict[str, Array] | None:
    """What onnxruntime computes, or nothing if it is not installed."""
    if optional("onnxruntime") is None:
        return None
    return run_onnxruntime(model, inputs)


def run_onnxruntime(model: onnx.ModelProto | Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime computes, row by row as a server may: all of them have to be independent."""
    session = session_of(model)
    names = [output.name for output in session.get_outputs()]
    count = len(next(iter(inputs.values())))
    rows = []
    for row in range(count):
        one = {name: array[row : row + 1] for name, array in inputs.items()}
        try:
            rows.append(session.run(names, one))
        except Exception as error:  # onnxruntime has a class for every status
            raise ExportError(f"onnxruntime fails on row {row} of the inputs: {error}") from error
    return {name: numpy.concatenate([row[index] for row in rows]) for index, name in enumerate(names)}


def session_of(model: onnx.ModelProto | Path) -> Any:
    """A session of onnxruntime that prints errors alone."""
    runtime = require("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime cannot load the graph: {error}") from error
