"""The steps that all frameworks share: compare, pack, report."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import onnx

from . import difference, golden, graph, manifest, reference
from .errors import ExportError, IdentityError, SampleError
from .graph import Array
from .lowering import lower
from .manifest import TextColumn
from .runtimes import onnxruntime_outputs
from .target import Target

#: The largest model that protobuf can hold in one file.
MAX_BYTES = (1 << 31) - 1

_ADVICE = (
    "The exported graph computes something else, often because it is in single precision: train on "
    "float32, leave out scalers in front of trees, or give a larger tolerance=."
)


@dataclass(frozen=True)
class Exported:
    """A model in ONNX, with rows of the sample and the framework's own outputs for them."""

    model: onnx.ModelProto
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    features: Sequence[reference.Feature]
    #: The labels of a classifier.
    classes: Sequence[Any] | None = None
    #: Columns of texts, by the graph's input for their codes.
    texts: Mapping[str, TextColumn] = field(default_factory=dict)
    #: What the numbers of the output `label` stand for, if labels are texts.
    labels: Sequence[str] | None = None


@dataclass(frozen=True)
class Files:
    """What `guesthouse pack` reads."""

    model: onnx.ModelProto
    #: Golden examples.
    examples: Sequence[str]
    #: The manifest around the graph; empty if there is none.
    manifest: str = ""
    #: Files that the manifest names.
    others: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Packed:
    """A packed model."""

    #: The artifact.
    artifact: Path
    #: The drift reference beside it.
    reference: Path
    #: The number of golden examples.
    examples: int
    #: The largest difference between the framework and the packed model, by output.
    guest_difference: Mapping[str, float]
    #: The same for onnxruntime; nothing if it is not installed.
    onnxruntime_difference: Mapping[str, float] | None
    #: The labels of a classifier.
    classes: Sequence[Any] | None = None


def pack(exported: Exported, target: Target) -> Packed:
    """Make the artifact and its drift reference, or raise an error and leave nothing behind."""
    model = exported.model
    lower(model)
    graph.keep_outputs(model, exported.outputs)
    inputs, outputs = graph.inputs(model), graph.outputs(model)
    if not outputs:
        raise ExportError("the exported graph has no output that the framework computes, too")
    named = {value.name: value.field for value in inputs}
    named |= {name: column.field for name, column in exported.texts.items()}
    fields = [*named.values(), *(value.field for value in outputs)]
    for name in fields:
        if sum(name.lower() == other.lower() for other in fields) > 1:
            raise SampleError(f"two columns or outputs would be called `{name}`: rename one of them")
    given = {value.name: exported.inputs[value.name].astype(value.dtype) for value in inputs}
    wanted = {value.name: exported.outputs[value.name].astype(value.dtype) for value in outputs}
    computed = onnxruntime_outputs(model, given)
    by_runtime = None
    if computed is not None:
        by_runtime = difference.check(wanted, computed, target.tolerance, "onnxruntime", _ADVICE)
    labels = {"label": exported.labels} if exported.labels and "label" in wanted else {}
    rows = {column.field: column.values for column in exported.texts.values()}
    rows |= {value.field: given[value.name] for value in inputs if value.name not in exported.texts}
    answers = {value.field: _texts(wanted[value.name], labels.get(value.name)) for value in outputs}
    files = Files(
        model,
        golden.bounded(golden.lines(rows, answers)),
        manifest.of_table(exported.texts, outputs, labels),
    )
    return finish(files, exported.features, exported.classes, by_runtime, target)


def finish(
    files: Files,
    features: Sequence[reference.Feature],
    classes: Sequence[Any] | None,
    by_runtime: Mapping[str, float] | None,
    target: Target,
) -> Packed:
    """Make the artifact and its drift reference, or raise an error and leave nothing behind."""
    if files.model.ByteSize() > MAX_BYTES:
        raise ExportError("the exported graph is larger than 2 GiB, which no ONNX file can be")
    by_guest = _write(files, reference.write(target, features, classes), target)
    packed = Packed(
        target.output, target.reference, len(files.examples), by_guest, by_runtime, classes
    )
    _report(packed, target)
    return packed


def _texts(answers: Array, labels: Sequence[str] | None) -> Array:
    if labels is None:
        return answers
    return numpy.array([labels[number] for number in answers], "object")


def _write(files: Files, text: str, target: Target) -> dict[str, float]:
    options = ["--name", target.name, "--version", target.version]
    options += ["--tolerance", repr(target.tolerance)]
    if target.max_batch_size is not None:
        options += ["--max-batch-size", str(target.max_batch_size)]
    with tempfile.TemporaryDirectory(prefix="guesthouse-pack-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(files.model.SerializeToString())
        golden_file = folder / "golden.jsonl"
        golden_file.write_text("\n".join(files.examples) + "\n", encoding="utf-8")
        if files.manifest:
            (folder / "model.toml").write_text(files.manifest, encoding="utf-8")
            options += ["--manifest", str(folder / "model.toml")]
        for other, path in files.others.items():
            shutil.copyfile(path, folder / other)
        made = folder / "made.wasm"
        found = target.program.pack(folder / "model.onnx", golden_file, made, options)
        _publish({made: target.output}, {target.reference: text})
    return found


def _publish(files: Mapping[Path, Path], texts: Mapping[Path, str]) -> None:
    """Write everything beside its place first, so that a full disk leaves nothing."""
    drafts: dict[Path, Path] = {}
    try:
        for source, place in files.items():
            drafts[_draft(place)] = place
            _copy(source, _draft(place))
        for place, text in texts.items():
            drafts[_draft(place)] = place
            _draft(place).write_text(text, encoding="utf-8")
        for draft, place in drafts.items():
            os.replace(draft, place)
    except OSError as error:
        for draft in drafts:
            draft.unlink(missing_ok=True)
        raise IdentityError(f"cannot write {error.filename}: {error.strerror}") from error


def _draft(place: Path) -> Path:
    return place.with_name(f".{place.name}.{os.getpid()}.draft")


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, place.open("xb") as writer:
        while chunk := reader.read(1 << 20):
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())


def _report(packed: Packed, target: Target) -> None:
    print(f"packed {target.name}@{target.version} into {packed.artifact}")
    print(f"golden examples: {packed.examples} rows of the sample, with the framework's outputs")
    for what, differences in (
        ("the packed model", packed.guest_difference),
        ("onnxruntime", packed.onnxruntime_difference),
    ):
        if differences:
            apart = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
            print(f"largest difference between the framework and {what}: {apart}")
        elif differences is not None:
            print(f"largest difference between the framework and {what}: at most {target.tolerance:g}")
        else:
            print(f"{what} is not installed, so that it was not compared")
    print(f"drift reference: {packed.reference}", flush=True)
    sys.stdout.flush()
