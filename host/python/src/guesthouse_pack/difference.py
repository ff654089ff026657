"""How far outputs are apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from .errors import DifferenceError
from .graph import Array


def largest(wanted: Array, found: Array) -> float:
    """The largest distance of two numbers at the same place; infinite if there is no such place."""
    wanted, found = numpy.asarray(wanted), numpy.asarray(found)
    if wanted.shape != found.shape:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    if wanted.dtype.kind in "iub" and found.dtype.kind in "iub":
        return 0.0 if bool((wanted == found).all()) else float("inf")
    distance = numpy.abs(wanted.astype("f8") - found.astype("f8"))
    return float("inf") if bool(numpy.isnan(distance).any()) else float(distance.max())


def check(
    wanted: Mapping[str, Array], found: Mapping[str, Array], tolerance: float, what: str, advice: str
) -> dict[str, float]:
    """The largest difference of each output, none of which may be above the tolerance."""
    differences = {name: largest(wanted[name], found[name]) for name in wanted}
    for name, difference in differences.items():
        if difference > tolerance:
            apart = f"{difference:.2g}" if numpy.isfinite(difference) else "more than rounding"
            row = _row(wanted[name], found[name])
            raise DifferenceError(
                f"the framework and {what} are {apart} apart in `{name}`{row}, and the tolerance is "
                f"{tolerance:g}. {advice}"
            )
    return differences


def _row(wanted: Array, found: Array) -> str:
    if wanted.shape != found.shape or not len(wanted):
        return f" (of shapes {wanted.shape} and {found.shape})"
    apart = numpy.abs(wanted.astype("f8") - found.astype("f8")).reshape(len(wanted), -1)
    row = int(numpy.nan_to_num(apart, nan=numpy.inf).max(axis=1).argmax())
    return f" (example {row + 1}: {wanted[row].tolist()} and {found[row].tolist()})"
