"""`python -m guesthouse_pack golden` prints examples with onnxruntime's outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guesthouse_pack.__main__ import main

pytest.importorskip("onnxruntime")

IRIS = Path(__file__).parents[3] / "tests/data/iris"


def test_examples_agree_with_the_framework(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oracle = [json.loads(line) for line in (IRIS / "oracle.jsonl").read_text().splitlines()]
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps(oracle[0]["inputs"]), "", *map(json.dumps, oracle[1:])]
    rows.write_text("\n".join(lines))
    assert main(["golden", str(IRIS / "iris.onnx"), str(rows)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == len(oracle)
    for example, expected in zip(found, oracle, strict=True):
        assert example["inputs"]["X"] == pytest.approx(expected["inputs"]["X"], abs=1e-6)
        assert example["outputs"]["label"] == expected["outputs"]["label"]
        assert example["outputs"]["probabilities"] == pytest.approx(expected["outputs"]["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('{"Y": [1, 2, 3, 4]}', "the inputs ['X'] are missing"),
        ('{"X": [1, 2, 3, 4]}\n{"X": [1, 2, 3]}', "line 2: input `X` has the shape [1, 3]"),
        ('{"X": [1, 2, 3, "four"]}', "no numbers"),
        ('{"X": [1, 2, 3, NaN]}', "missing or infinite"),
    ],
)
def test_bad_rows_print_an_error_and_no_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(text)
    assert main(["golden", str(IRIS / "iris.onnx"), str(rows)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err


def test_bad_files_print_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"X": [1, 2, 3, 4]}')
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((IRIS / "iris.onnx").read_bytes()[:100])
    for model, inputs in [(broken, rows), (tmp_path / "absent.onnx", rows), (IRIS / "iris.onnx", tmp_path / "absent")]:
        assert main(["golden", str(model), str(inputs)]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ")
