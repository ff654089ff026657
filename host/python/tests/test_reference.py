"""The drift reference summarises the sample as numpy does."""

from __future__ import annotations

import json

import numpy

from guesthouse_pack import reference
from guesthouse_pack.reference import Feature
from test_target import target


def test_numbers_have_quantiles_and_a_histogram() -> None:
    values = numpy.random.default_rng(1).normal(size=1000)
    found = reference.summary(Feature("X", "X[0]", values, 0))
    assert found["kind"] == "number" and found["column"] == 0 and found["missing"] == 0
    assert found["quantiles"]["0.5"] == numpy.median(values)
    assert found["quantiles"]["0"] == values.min() and found["quantiles"]["1"] == values.max()
    assert sum(found["histogram"]["counts"]) == 1000
    assert all(95 <= count <= 105 for count in found["histogram"]["counts"])


def test_few_whole_numbers_are_categories() -> None:
    found = reference.summary(Feature("kind", "kind", numpy.array([2, 0, 2, 2])))
    assert found["frequencies"] == {"0": 1, "2": 3}
    assert reference.summary(Feature("n", "n", numpy.arange(33)))["kind"] == "number"


def test_texts_are_categories_of_which_the_most_frequent_are_kept() -> None:
    values = numpy.array(["b", "a", "b"], "object")
    assert reference.summary(Feature("x", "x", values))["frequencies"] == {"a": 1, "b": 2}
    values = numpy.array(["a", "a", *map(str, range(40))], "object")
    found = reference.summary(Feature("x", "x", values))
    assert len(found["frequencies"]) == 32 and found["frequencies"]["a"] == 2 and found["others"] == 9


def test_constant_and_missing_numbers_are_summarised() -> None:
    found = reference.summary(Feature("x", "x", numpy.array([1.5, numpy.nan, 1.5])))
    assert found["missing"] == 1 and found["mean"] == 1.5
    assert found["histogram"] == {"edges": [1.5, 1.5], "counts": [2]}
    assert "mean" not in reference.summary(Feature("x", "x", numpy.array([numpy.nan])))


def test_file_is_json_with_a_feature_for_each_column() -> None:
    rows = numpy.arange(12, dtype="f4").reshape(4, 3)
    features = reference.columns("X", rows, ["a", "b", "c"])
    text = json.loads(reference.write(target(), features, ["yes", "no"]))
    assert [feature["name"] for feature in text["features"]] == ["a", "b", "c"]
    assert (text["format"], text["model"], text["rows"]) == (1, "iris", 4)
    assert text["classes"] == ["yes", "no"]
    assert reference.columns("image", numpy.zeros((2, 3, 4, 4))) == []
