"""Packed models answer over HTTP what the framework answers, on rows that are not in the sample."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import guesthouse_pack
from conftest import Server
from guesthouse_pack import packing
from guesthouse_pack.errors import DifferenceError

pytest.importorskip("skl2onnx", reason="scikit-learn is not installed")

from test_scikit_learn import NAMES, ROWS, SPECIES, columns_model, with_texts

TABLE = with_texts(ROWS, SPECIES)


def test_pipeline_answers_over_http_what_it_answers_itself(
    tmp_path: Path, program: str, serve: Callable[[Path], Server], capsys: pytest.CaptureFixture[str]
) -> None:
    model = columns_model("leaf").fit(TABLE, NAMES)
    path = tmp_path / "repository" / "flowers-1.2.0.wasm"
    packed = guesthouse_pack.sklearn(
        model, TABLE[::2], name="flowers", version="1.2.0", output=path, guesthouse=program, max_examples=20
    )
    assert packed.examples == 20 and packed.artifact == path and packed.artifact.stat().st_size > 1 << 20
    assert packed.classes == ["setosa", "versicolor", "virginica"]
    assert packed.onnxruntime_difference is not None
    assert packed.onnxruntime_difference["label"] == 0
    assert set(packed.guest_difference) == {"probabilities"}
    for differences in (packed.guest_difference, packed.onnxruntime_difference):
        assert 0 <= differences["probabilities"] < 1e-5
    assert "largest difference between the framework and the packed model" in capsys.readouterr().out
    about = json.loads(packed.reference.read_text())
    assert about["rows"] == 75 and about["features"][2]["frequencies"] == {"0": 25, "1": 25, "2": 25}
    server = serve(path.parent)
    others = TABLE[1::2]
    rows = json.loads(others.rename(columns=lambda name: name.replace(" ", "_")).to_json(orient="records"))
    answers = [server.predict("flowers", row | {"flag": int(row["flag"])}) for row in rows]
    found = [answer["probabilities"] for answer in answers]
    numpy.testing.assert_allclose(found, model.predict_proba(others), atol=1e-5)
    assert [answer["label"] for answer in answers] == model.predict(others).tolist()
    with pytest.raises(urllib.error.HTTPError, match="422"):
        server.predict("flowers", rows[0] | {"flag": 1, "leaf": "none"})


def test_other_outputs_than_the_frameworks_leave_no_file(
    no_files: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    iris = Path(__file__).parents[3] / "tests/data/iris/iris.onnx"
    rows: dict[str, Any] = {"X": ROWS[:3].astype("f4")}
    wrong = {"probabilities": numpy.full((3, 3), 0.4, "f4")}
    arguments: dict[str, Any] = {"name": "iris", "version": "1.0.0", "guesthouse": program, "outputs": wrong}
    with pytest.raises(DifferenceError, match="onnxruntime"):
        guesthouse_pack.onnx(iris, rows, **arguments)
    # Without onnxruntime, the packed model itself notices it.
    monkeypatch.setattr(packing, "onnxruntime_outputs", lambda *_: None)
    with pytest.raises(DifferenceError, match="golden example 1"):
        guesthouse_pack.onnx(iris, rows, **arguments)
