"""Manifests are TOML that says what was meant."""

from __future__ import annotations

import sys
from typing import Any

import numpy
import pytest

from guesthouse_pack import manifest
from guesthouse_pack.graph import Value
from guesthouse_pack.manifest import TextColumn

if sys.version_info < (3, 11):
    pytest.skip("there is no reader of TOML before Python 3.11", allow_module_level=True)

import tomllib

ODD = ['a "quoted" \\ text', "new\nline", "größe 日本 🙂", "\x00\x1f\x7f"]


def value(name: str, *shape: int | None) -> Value:
    return Value(name, name, numpy.dtype("f4"), shape)


def parse(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def test_labels_and_columns_are_read_back() -> None:
    column = TextColumn("job", numpy.array(["b", "z"], "object"), ODD, rejects_others=False)
    outputs = [value("label", None), value("probabilities", None, 4)]
    found = parse(manifest.of_table({"job.code": column}, outputs, {"label": ODD}))
    assert found["inputs"] == [{"name": "job"}]
    expected = {"input": "job", "categories": ODD, "unknown": {"code": -1}}
    assert found["table"] == [{"graph": "job.code", "columns": [expected]}]
    assert [output["name"] for output in found["outputs"]] == ["label", "probabilities"]
    assert found["outputs"][0]["steps"] == [{"labels": ODD}]
    assert "steps" not in found["outputs"][1]


def test_columns_that_reject_others_say_nothing_about_them() -> None:
    column = TextColumn("job", numpy.array(["b"], "object"), ["a", "b"], rejects_others=True)
    found = parse(manifest.of_table({"job.code": column}, [], {}))
    assert found["table"][0]["columns"] == [{"input": "job", "categories": ["a", "b"]}]
    assert column.codes().tolist() == [[1.0]]


def test_graph_without_texts_needs_no_manifest() -> None:
    assert manifest.of_table({}, [value("y", None)], {}) == ""


def test_classifier_of_texts_has_labels_and_probabilities() -> None:
    found = parse(manifest.of_text("tokenizer.json", 128, ["bad", "good"], [value("logits", None, 2)]))
    assert found["tokenize"] == [{"input": "text", "tokenizer": "tokenizer.json", "max_length": 128}]
    assert found["outputs"][0]["steps"] == ["argmax", {"labels": ["bad", "good"]}]
    assert found["outputs"][1]["steps"] == ["softmax"]
    assert "outputs" not in parse(manifest.of_text("tokenizer.json", 128, None, []))
