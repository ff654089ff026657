"""ONNX files, with examples computed by onnxruntime or given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from . import graph, reference
from .errors import SampleError
from .graph import Array, Value
from .packing import Exported, Packed, pack
from .runtimes import run_onnxruntime
from .sample import choose
from .target import MAX_EXAMPLES, TOLERANCE, Target


def onnx(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Any],
    *,
    name: str,
    version: str,
    outputs: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    max_examples: int = MAX_EXAMPLES,
    max_batch_size: int | None = None,
    guesthouse: str | os.PathLike[str] | None = None,
) -> Packed:
    """Pack an ONNX file.

    `inputs` are arrays by input of the graph, whose first dimension is the rows of the sample; `outputs`
    what the framework that the file comes from answers. Without `outputs`, onnxruntime computes them.

    Raises `PackError` and writes nothing if the model is not packed.
    """
    target = Target.check(
        name=name,
        version=version,
        output=output,
        tolerance=tolerance,
        max_examples=max_examples,
        max_batch_size=max_batch_size,
        guesthouse=guesthouse,
    )
    model = graph.load(Path(path))
    arrays = check_inputs(graph.inputs(model), inputs)
    count = len(next(iter(arrays.values())))
    places = choose(count, target.max_examples)
    chosen = {name: array[places] for name, array in arrays.items()}
    if outputs is None:
        found = run_onnxruntime(model, chosen)
    else:
        known = {value.name for value in graph.outputs(model)}
        unknown = sorted(set(outputs) - known)
        if unknown or not outputs:
            raise SampleError(f"the graph has no outputs {unknown}: it has {sorted(known)}")
        whole = {name: numpy.asarray(array) for name, array in outputs.items()}
        if any(len(array) != count for array in whole.values()):
            raise SampleError(f"each output has a row for each of the {count} rows of the inputs")
        found = {name: array[places] for name, array in whole.items()}
    features = features_of(graph.inputs(model), arrays)
    return pack(Exported(model, chosen, found, features), target)


def check_inputs(values: list[Value], given: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays in the types of the graph, by its inputs."""
    if not isinstance(given, Mapping):
        raise SampleError("give the inputs as arrays by name, such as {'X': array}")
    names = [value.name for value in values]
    missing, unknown = sorted(set(names) - set(given)), sorted(set(given) - set(names))
    if missing or unknown:
        raise SampleError(
            f"the inputs {missing} are missing and {unknown} are none of the graph, which has {names}"
        )
    arrays = {value.name: _array(value, given[value.name]) for value in values}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise SampleError(f"all inputs have the same number of rows, and these have {counts}")
    if not all(counts.values()):
        raise SampleError("the sample is empty: give at least one row")
    return arrays


def _array(value: Value, given: Any) -> Array:
    try:
        array = numpy.asarray(given)
        if array.dtype.kind not in "iufb":
            raise TypeError(f"values of type {array.dtype} are no numbers")
        array = array.astype(value.dtype)
    except (TypeError, ValueError) as error:
        raise SampleError(f"input `{value.name}`: {error}") from error
    if array.ndim != len(value.shape) or any(
        size is not None and size != found
        for size, found in list(zip(value.shape, array.shape, strict=False))[1:]
    ):
        shape = ["rows", *("?" if size is None else size for size in value.shape[1:])]
        raise SampleError(
            f"input `{value.name}` has the shape {list(array.shape)}, and the graph takes {shape}: the "
            "first dimension is the rows of the sample"
        )
    if array.dtype.kind == "f" and not bool(numpy.isfinite(array).all()):
        raise SampleError(
            f"input `{value.name}` has values that are missing or infinite, which a server rejects: "
            "leave such rows out"
        )
    return array


def features_of(values: list[Value], arrays: Mapping[str, Array]) -> list[reference.Feature]:
    """The features of all inputs that are numbers or rows of numbers."""
    found: list[reference.Feature] = []
    for value in values:
        found += reference.columns(value.field, arrays[value.name])
    return found
