"""Modules of PyTorch, exported by torch.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import onnx

from . import graph
from .errors import ExportError, ModelError, SampleError
from .extras import optional, require
from .onnx_file import check_inputs, features_of
from .packing import Exported, Packed, pack
from .sample import choose
from .target import MAX_EXAMPLES, TOLERANCE, Target

#: The version of ONNX that is exported, which guests know.
OPSET = 18


def torch(
    module: Any,
    inputs: Any,
    *,
    name: str,
    version: str,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    max_examples: int = MAX_EXAMPLES,
    max_batch_size: int | None = None,
    guesthouse: str | os.PathLike[str] | None = None,
) -> Packed:
    """Pack a module.

    `inputs` is a tensor, or a sequence of tensors, or tensors by the name of an argument; their first
    dimension is the rows of the sample. The module is exported in evaluation mode, with a batch that
    varies.

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
    library = require("torch", "torch")
    if isinstance(module, type):
        raise ModelError(f"{module.__name__} is a class and not a module: make an instance and load its weights")
    if not isinstance(module, library.nn.Module):
        raise ModelError(f"{type(module).__name__} is no torch.nn.Module: give the module itself")
    tensors = _tensors(library, inputs, input_names)
    count = len(next(iter(tensors.values())))
    rows = choose(count, target.max_examples).tolist()
    chosen = {name: tensor[rows] for name, tensor in tensors.items()}
    module = module.eval()
    answers = _answers(library, module, chosen, isinstance(inputs, Mapping))
    names = list(output_names or _default_names(answers))
    if len(names) != len(answers):
        raise SampleError(f"the module returns {len(answers)} tensors, and there are {len(names)} names")
    model = _export(library, module, chosen, names, isinstance(inputs, Mapping))
    arrays = {name: tensor.numpy(force=True) for name, tensor in tensors.items()}
    check_inputs(graph.inputs(model), arrays)
    found = {name: answer.numpy(force=True) for name, answer in zip(names, answers, strict=True)}
    features = features_of(graph.inputs(model), arrays)
    given = {name: tensor.numpy(force=True) for name, tensor in chosen.items()}
    return pack(Exported(model, given, found, features), target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's reports of its progress, whose warnings are about other models."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _tensors(library: Any, inputs: Any, names: Sequence[str] | None) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        tensors = dict(inputs)
    else:
        several = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
        default = ["input"] if len(several) == 1 else [f"input{place}" for place in range(len(several))]
        names = list(names or default)
        if len(names) != len(several):
            raise SampleError(f"there are {len(several)} inputs and {len(names)} names for them")
        tensors = dict(zip(names, several, strict=True))
    for name, tensor in tensors.items():
        if isinstance(tensor, numpy.ndarray):
            tensors[name] = tensor = library.from_numpy(tensor)
        if not isinstance(tensor, library.Tensor) or tensor.ndim == 0:
            raise SampleError(f"input `{name}` is no tensor of rows: give tensors whose first dimension is rows")
        if not len(tensor):
            raise SampleError("the sample is empty: give at least one row")
    if not tensors:
        raise SampleError("the sample is empty: give at least one input")
    counts = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(counts.values())) > 1:
        raise SampleError(f"all inputs have the same number of rows, and these have {counts}")
    return tensors


def _answers(library: Any, module: Any, chosen: Mapping[str, Any], by_name: bool) -> list[Any]:
    try:
        with library.no_grad():
            answer = module(**chosen) if by_name else module(*chosen.values())
    except Exception as error:  # whatever the module raises
        raise SampleError(f"the module fails on the sample: {error}") from error
    answers = list(answer.values()) if isinstance(answer, Mapping) else answer
    answers = list(answers) if isinstance(answers, (tuple, list)) else [answers]
    if not all(isinstance(one, library.Tensor) for one in answers):
        raise ModelError("the module returns something else than tensors: wrap it in one that returns tensors")
    return answers


def _default_names(answers: Sequence[Any]) -> list[str]:
    return ["output"] if len(answers) == 1 else [f"output{place}" for place in range(len(answers))]


def _export(
    library: Any, module: Any, chosen: Mapping[str, Any], names: Sequence[str], by_name: bool
) -> onnx.ModelProto:
    # The exporter takes a dimension of size one for a constant.
    example = {name: tensor if len(tensor) > 1 else tensor.repeat_interleave(2, 0) for name, tensor in chosen.items()}
    arguments: dict[str, Any] = {
        "input_names": list(example),
        "output_names": list(names),
        "opset_version": OPSET,
    }
    if optional("onnxscript") is not None:
        batch = library.export.Dim("rows")
        shapes = [{0: batch} for _ in example]
        arguments |= {
            "dynamo": True,
            "external_data": False,
            "dynamic_shapes": dict(zip(example, shapes, strict=True)) if by_name else tuple(shapes),
        }
    else:
        axes = {name: {0: "rows"} for name in (*example, *names)}
        arguments |= {"dynamo": False, "dynamic_axes": axes, "opset_version": 17}
    if by_name:
        arguments["kwargs"] = dict(example)
    args = () if by_name else tuple(example.values())
    with tempfile.TemporaryDirectory(prefix="guesthouse-pack-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            with _quiet():
                library.onnx.export(module, args, str(path), **arguments)
        except Exception as error:  # the exporter raises whatever it meets
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(f"torch.onnx cannot export {type(module).__name__}: {lines[0][:300]}") from error
        return onnx.load(str(path))
