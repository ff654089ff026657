"""The drift reference: a summary of the sample for each feature, as JSON beside the artifact.

    {"format": 1, "model": "iris", "version": "1.0.0", "rows": 150,
     "features": [{"input": "X", "column": 0, "name": "sepal length", "kind": "number",
                   "missing": 0, "mean": …, "standard_deviation": …,
                   "quantiles": {"0": …, "0.05": …, "0.25": …, "0.5": …, "0.75": …, "0.95": …, "1": …},
                   "histogram": {"edges": […], "counts": […]}},
                  {"input": "n", "name": "n", "kind": "category",
                   "missing": 0, "frequencies": {"0": 50, "1": 50, "2": 50}}],
     "classes": ["setosa", "versicolor", "virginica"]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from .graph import Array
from .target import Target

#: The version of the format.
FORMAT = 1

#: Whole numbers with at most so many values are categories.
MAX_CATEGORIES = 32

#: The most features that are summarised: pixels of pictures say nothing one by one.
MAX_FEATURES = 1024

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Feature:
    """A feature: all its values in the sample."""

    input: str
    name: str
    values: Array
    column: int | None = None


def columns(field: str, array: Array, names: Sequence[str] | None = None) -> list[Feature]:
    """The features of an input of one or two dimensions; others have none."""
    if array.ndim == 1:
        return [Feature(field, field, array)]
    if array.ndim != 2 or array.shape[1] > MAX_FEATURES:
        return []
    names = names or [f"{field}[{column}]" for column in range(array.shape[1])]
    pairs = enumerate(zip(names, array.T, strict=True))
    return [Feature(field, str(name), values, column) for column, (name, values) in pairs]


def write(target: Target, features: Sequence[Feature], classes: Sequence[Any] | None) -> str:
    """The text of the file."""
    rows = max((len(feature.values) for feature in features), default=0)
    reference: dict[str, Any] = {
        "format": FORMAT,
        "model": target.name,
        "version": target.version,
        "rows": rows,
        "features": [summary(feature) for feature in features],
    }
    if classes is not None:
        reference["classes"] = list(classes)
    return json.dumps(reference, indent=2, allow_nan=False) + "\n"


def summary(feature: Feature) -> dict[str, Any]:
    """A feature with frequencies, or with quantiles and a histogram with bins of equal frequency."""
    about: dict[str, Any] = {"input": feature.input}
    if feature.column is not None:
        about["column"] = feature.column
    about["name"] = feature.name
    values = numpy.asarray(feature.values)
    if values.dtype.kind in "iub":
        kinds, counts = numpy.unique(values, return_counts=True)
        if len(kinds) <= MAX_CATEGORIES:
            frequencies = {str(kind): int(count) for kind, count in zip(kinds.tolist(), counts, strict=True)}
            return about | {"kind": "category", "missing": 0, "frequencies": frequencies}
    if values.dtype.kind == "O":
        kinds, counts = numpy.unique(values.astype(str), return_counts=True)
        order = numpy.argsort(-counts, kind="stable")
        kept = {str(kinds[place]): int(counts[place]) for place in order[:MAX_CATEGORIES]}
        about |= {"kind": "category", "missing": 0, "frequencies": kept}
        others = len(values) - sum(kept.values())
        return about | ({"others": others} if others else {})
    numbers = values.astype("f8")
    present = numbers[numpy.isfinite(numbers)]
    about |= {"kind": "number", "missing": int(len(numbers) - len(present))}
    if not len(present):
        return about
    quantiles = numpy.quantile(present, _QUANTILES)
    edges = numpy.unique(numpy.quantile(present, numpy.linspace(0, 1, 11)))
    if len(edges) == 1:
        edges = numpy.repeat(edges, 2)
    counts, _ = numpy.histogram(present, bins=edges)
    return about | {
        "mean": float(present.mean()),
        "standard_deviation": float(present.std()),
        "quantiles": {f"{at:g}": float(value) for at, value in zip(_QUANTILES, quantiles, strict=True)},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
