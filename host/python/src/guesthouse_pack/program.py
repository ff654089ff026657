"""The program `guesthouse`: where it is, and running it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DifferenceError, ProgramError, RejectedError

#: The environment variable with the path of the program.
VARIABLE = "GUESTHOUSE_BIN"

#: How `guesthouse pack` reports the largest difference of each output.
_DIFFERENCE = re.compile(r"^golden examples: .* differ(?:s)? by at most (\S+) in `([^`]+)`$")

#: What `guesthouse pack` says of a golden example that does not come out as it is written.
_MISMATCH = re.compile(r"golden example \d+: `[^`]+` is .*")


@dataclass(frozen=True)
class Program:
    """The program."""

    path: str

    @classmethod
    def find(cls, given: str | os.PathLike[str] | None) -> Program:
        """The program that is given, or that the environment names, or on the path."""
        for source, value in (("guesthouse=", given), (VARIABLE, os.environ.get(VARIABLE))):
            if value:
                path = shutil.which(os.fspath(value))
                if path is None:
                    raise ProgramError(f"{source} names {os.fspath(value)!r}, which is no program: correct it")
                return cls(path)
        path = shutil.which("guesthouse")
        if path is None:
            raise ProgramError(
                "the program `guesthouse` is not on the path: install it, or give its path by "
                f"guesthouse= or by the environment variable {VARIABLE}"
            )
        return cls(path)

    def pack(self, model: Path, golden: Path, output: Path, options: Sequence[str]) -> dict[str, float]:
        """Make an artifact; how far each output is from the golden ones, if the program says it."""
        command = [self.path, "pack", "--onnx", str(model), "--golden", str(golden), "-o", str(output)]
        try:
            done = subprocess.run(
                [*command, *options], capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise ProgramError(f"{self.path} cannot be run: {error}") from error
        if done.returncode != 0:
            raise _rejection(done.stderr)
        lines = (_DIFFERENCE.match(line) for line in done.stdout.splitlines())
        return {line[2]: float(line[1]) for line in lines if line}


def _rejection(stderr: str) -> RejectedError | DifferenceError:
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    reason = "\n".join(errors) or stderr.strip() or "it says nothing"
    if _MISMATCH.search(reason):
        return DifferenceError(
            f"the packed model does not give the framework's outputs: {reason}\n"
            "Give a larger tolerance= if this difference is acceptable."
        )
    return RejectedError(f"guesthouse pack rejects the model: {reason}")
