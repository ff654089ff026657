"""What an artifact is to be called and where it is to be written: checked before any work is done."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import IdentityError
from .program import Program

#: How far the guest's outputs may be from the framework's: they add in another order, in single precision.
TOLERANCE = 1e-4

#: The most rows of the sample that become golden examples. They run at every deployment.
MAX_EXAMPLES = 32

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_VERSION = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


@dataclass(frozen=True)
class Target:
    """The artifact to make."""

    name: str
    version: str
    output: Path
    program: Program
    tolerance: float = TOLERANCE
    max_examples: int = MAX_EXAMPLES
    max_batch_size: int | None = None

    @classmethod
    def check(
        cls,
        *,
        name: str,
        version: str,
        output: str | os.PathLike[str] | None,
        tolerance: float,
        max_examples: int,
        max_batch_size: int | None,
        guesthouse: str | os.PathLike[str] | None,
    ) -> Target:
        """Check what a caller gave; the output is `NAME-VERSION.wasm` here unless it is given."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise IdentityError(
                f"{name!r} is not the name of a model: take 1 to 64 lower-case letters, digits, `-` "
                "and `_`, beginning with a letter"
            )
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise IdentityError(
                f"{version!r} is not a semantic version: take three numbers, such as '1.0.0'"
            )
        if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < float("inf"):
            raise IdentityError(f"the tolerance is a number of at least 0, such as 1e-4, not {tolerance!r}")
        if not 1 <= max_examples <= 1000:
            raise IdentityError(f"an artifact has 1 to 1000 golden examples, not {max_examples}")
        if max_batch_size is not None and max_batch_size < 1:
            raise IdentityError(f"a call has at least one row, not {max_batch_size}")
        path = Path(output) if output is not None else Path(f"{name}-{version}.wasm")
        if path.exists() and not path.is_file():
            raise IdentityError(f"{path} is there and no file: give the path of the artifact as output")
        return cls(
            name=name,
            version=version,
            output=path,
            program=Program.find(guesthouse),
            tolerance=float(tolerance),
            max_examples=max_examples,
            max_batch_size=max_batch_size,
        )

    @property
    def reference(self) -> Path:
        """The file of the drift reference, beside the artifact."""
        return self.output.with_suffix(".reference.json")
