"""Golden examples: lines of JSON that `guesthouse pack --golden` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy

from .errors import SampleError
from .graph import Array

#: The limits of an artifact: bytes and values of all examples together.
MAX_BYTES = 16 << 20
MAX_VALUES = 1 << 19


def lines(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Iterator[str]:
    """A line for each row of arrays, which are named as the fields of the signature."""
    for row in range(len(next(iter(inputs.values())))):
        example = {
            "inputs": {field: _json(array[row]) for field, array in inputs.items()},
            "outputs": {field: _json(array[row]) for field, array in outputs.items()},
        }
        yield json.dumps(example, allow_nan=False)


def bounded(examples: Iterable[str]) -> list[str]:
    """As many examples as an artifact may have; at least one."""
    kept: list[str] = []
    size = values = 0
    for example in examples:
        size += len(example) + 1
        values += sum(map(example.count, ",:[{"))
        if size > MAX_BYTES or values > MAX_VALUES:
            break
        kept.append(example)
    if not kept:
        raise SampleError(
            f"a row of the sample has more than {MAX_VALUES} numbers: give a sample of smaller rows"
        )
    return kept


def _json(row: Any) -> Any:
    """A row as JSON. Numbers in single precision have the few digits that identify them."""
    array = numpy.asarray(row)
    if array.dtype in (numpy.float32, numpy.float16):
        shorten = numpy.vectorize(lambda number: float(str(number)), otypes=[object])
        return shorten(array).tolist() if array.size else array.tolist()
    return array.tolist()
