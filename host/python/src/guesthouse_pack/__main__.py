"""`python -m guesthouse_pack golden MODEL INPUTS`: golden examples of an ONNX file by onnxruntime.

INPUTS are lines of JSON, a row each: `{"X": [5.1, 3.5, 1.4, 0.2]}`, or the same inside of `{"inputs": …}`.
The examples are printed, for `guesthouse pack --golden`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import golden, graph
from .errors import PackError, SampleError
from .extras import require
from .graph import Value
from .onnx_file import check_inputs
from .runtimes import run_onnxruntime


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="guesthouse_pack", description="Prepares models for `guesthouse pack`."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser(
        "golden",
        help="print golden examples with onnxruntime's outputs",
        description="Prints golden examples for `guesthouse pack --golden`, with onnxruntime's outputs.",
    )
    make.add_argument("model", type=Path, help="the ONNX file")
    make.add_argument("inputs", type=Path, help="lines of JSON, a row each: values by input")
    given = parser.parse_args(arguments)
    try:
        # Nothing is printed unless all of it can be.
        text = "\n".join(examples(given.model, given.inputs))
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


def examples(path: Path, rows: Path) -> list[str]:
    """The golden examples of a file, for rows of another."""
    require("onnxruntime", "onnxruntime")
    model = graph.load(path)
    inputs, outputs = graph.inputs(model), graph.outputs(model)
    found: list[str] = []
    for number, row in _rows(rows):
        try:
            given = check_inputs(inputs, _arrays(inputs, row))
        except SampleError as error:
            raise SampleError(f"{rows}, line {number}: {error}") from error
        answers = run_onnxruntime(path, given)
        found += golden.lines(
            {value.field: given[value.name] for value in inputs},
            {value.field: answers[value.name] for value in outputs},
        )
    if not found:
        raise SampleError(f"{rows} has no rows: write a line of JSON for each")
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SampleError(f"{path}, line {number} is no JSON: {error}") from error
        row = row.get("inputs", row) if isinstance(row, dict) else row
        if not isinstance(row, dict):
            raise SampleError(f"{path}, line {number} is no JSON object of values by input")
        yield number, row


def _arrays(inputs: list[Value], row: dict[str, Any]) -> dict[str, Any]:
    """A row as a batch of one, by the names of the graph; the row may have those of the fields."""
    names = {value.field: value.name for value in inputs}
    return {names.get(field, field): [value] for field, value in row.items()}


if __name__ == "__main__":
    sys.exit(main())
