"""The sample of a table: rows as the framework takes them, and as a server does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from .errors import SampleError
from .graph import Array, field_name
from .reference import Feature, columns

#: With more columns, they are one input instead of an input each.
MAX_NAMED_COLUMNS = 256


@dataclass(frozen=True)
class Sample:
    """A table of numbers whose rows are what a server will pass on: in single precision, or whole.

    A table of pandas has an array for each column, others have one array.
    """

    #: What was given, with the values of `arrays`.
    rows: Any
    #: Columns of a table of pandas by their name.
    arrays: dict[str, Array]
    #: The table as one array in single precision.
    matrix: Array

    @property
    def is_named(self) -> bool:
        """Whether each column is an input."""
        return 0 < len(self.arrays) <= MAX_NAMED_COLUMNS

    def features(self, field: str = "X") -> list[Feature]:
        """All features, for the drift reference."""
        if self.is_named:
            return [Feature(name, name, array) for name, array in self.arrays.items()]
        return columns(field, self.matrix, list(self.arrays) or None)

    def chosen(self, most: int) -> Sample:
        """At most so many rows, from all of the sample."""
        places = choose(len(self.matrix), most)
        rows = self.rows.iloc[places] if self.arrays else self.rows[places]
        arrays = {name: array[places] for name, array in self.arrays.items()}
        return Sample(rows, arrays, self.matrix[places])


def choose(count: int, most: int) -> Array:
    """The places of at most so many rows, at equal distances."""
    return numpy.unique(numpy.linspace(0, count - 1, min(count, most)).round().astype(int))


def read(
    sample: Any, names: Sequence[str] | None, count: int | None, takes_texts: bool = False
) -> Sample:
    """Check a sample against the columns that the model was fitted with, as far as they are known."""
    if hasattr(sample, "to_pandas"):
        sample = sample.to_pandas()
    if hasattr(sample, "iloc") and hasattr(sample, "columns"):
        if all(isinstance(name, str) for name in sample.columns):
            return _frame(sample, names, count, takes_texts)
        # Without names, scikit-learn sees no more than an array.
        sample = sample.to_numpy()
    if hasattr(sample, "toarray"):
        raise SampleError("the sample is sparse: give a few rows by sample[:100].toarray()")
    try:
        array = numpy.asarray(sample)
    except ValueError as error:
        raise SampleError(f"the sample is no table: its rows have different lengths ({error})") from error
    if array.ndim != 2:
        raise SampleError(
            f"the sample has {array.ndim} dimensions and not two: give rows of columns, such as X[:100]"
        )
    if not len(array):
        raise SampleError("the sample is empty: give at least one row")
    if count is not None and array.shape[1] != count:
        raise SampleError(
            f"the sample has {array.shape[1]} columns, and the model was fitted with {count}: give "
            "what you would pass to predict()"
        )
    if array.dtype.kind == "O":
        try:
            array = array.astype("f8")
        except (TypeError, ValueError) as error:
            raise SampleError(f"the sample has values that are no numbers: {error}. Encode them") from error
    _check_numbers("the sample", array)
    single = _single(array, "the sample")
    rows = single.astype(array.dtype) if array.dtype.kind == "f" else array
    return Sample(rows, {}, single)


def _frame(
    frame: Any, names: Sequence[str] | None, count: int | None, takes_texts: bool
) -> Sample:
    found = [str(name) for name in frame.columns]
    if not len(frame):
        raise SampleError("the sample is empty: give at least one row")
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise SampleError(f"the sample has several columns {twice[0]!r}: rename one of them")
    for one in found:
        same = [name for name in found if field_name(name).lower() == field_name(one).lower()]
        if len(same) > 1:
            raise SampleError(
                f"the columns {same} would be the same input `{field_name(one)}`: rename one of them"
            )
    if names is not None:
        missing = [name for name in names if name not in found]
        unknown = [name for name in found if name not in list(names)]
        if missing or unknown:
            raise SampleError(
                f"the sample lacks the columns {missing} and has the columns {unknown}, which the "
                "model was not fitted with: give what you would pass to predict()"
            )
        frame = frame[list(names)]
    elif count is not None and len(found) != count:
        raise SampleError(f"the sample has {len(found)} columns, and the model was fitted with {count}")
    arrays = {name: _column(name, frame[name], takes_texts) for name in frame.columns}
    rows = frame.assign(
        **{
            name: array.astype(frame[name].dtype)
            for name, array in arrays.items()
            if array.dtype.kind == "f" and getattr(frame[name].dtype, "kind", "O") == "f"
        }
    )
    if any(array.dtype.kind == "O" for array in arrays.values()):
        # No model takes such columns together.
        return Sample(rows, arrays, numpy.zeros((len(frame), 0), "float32"))
    matrix = numpy.column_stack([_single(array, f"column {name!r}") for name, array in arrays.items()])
    return Sample(rows, arrays, matrix)


def _column(name: str, column: Any, takes_texts: bool) -> Array:
    kind = getattr(column.dtype, "kind", "O")
    where = f"column {name!r}"
    if kind == "O" and takes_texts:
        values = numpy.asarray(column, "object")
        others = [place for place, value in enumerate(values) if not isinstance(value, str)]
        if others:
            raise SampleError(
                f"{where} has {values[others[0]]!r} in row {others[0]}, which is no text: give texts alone"
            )
        return values
    if kind not in "iufb":
        raise SampleError(
            f"{where} has values of type {column.dtype}, and a server takes numbers for a model like "
            "this: encode them before the pipeline, such as by an OrdinalEncoder of your own"
        )
    if bool(column.isna().any()):
        _reject_missing(where, int(numpy.flatnonzero(column.isna())[0]))
    array = numpy.asarray(column)
    if kind in "iub":
        return array.astype("int64")
    _check_numbers(where, array[:, None])
    return _single(array, where)


def _single(array: Array, where: str) -> Array:
    with numpy.errstate(over="ignore"):
        single = array.astype("float32")
    if not bool(numpy.isfinite(single).all()):
        raise SampleError(f"{where} has numbers that are too large for single precision: scale them")
    return single


def _check_numbers(where: str, array: Array) -> None:
    if array.dtype.kind not in "iufb":
        raise SampleError(f"{where} has values of type {array.dtype}, which are no numbers: encode them")
    if array.dtype.kind == "f" and not bool(numpy.isfinite(array).all()):
        row = int(numpy.flatnonzero(~numpy.isfinite(array).all(axis=1))[0])
        _reject_missing(where, row)


def _reject_missing(where: str, row: int) -> None:
    raise SampleError(
        f"{where} has a value in row {row} that is missing or infinite, which a server rejects: leave "
        "such rows out of the sample, and let callers fill missing values"
    )
