"""Names, versions, paths and the program are checked before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guesthouse_pack.errors import DifferenceError, IdentityError, ProgramError, RejectedError
from guesthouse_pack.program import Program, _rejection
from guesthouse_pack.target import Target


def target(**changes: Any) -> Target:
    given: dict[str, Any] = {
        "name": "iris",
        "version": "1.0.0",
        "output": None,
        "tolerance": 1e-4,
        "max_examples": 32,
        "max_batch_size": None,
        "guesthouse": "/bin/true",
    }
    return Target.check(**{**given, **changes})


def test_output_is_called_after_name_and_version() -> None:
    made = target(version="1.0.0-rc.1+build.5")
    assert made.output == Path("iris-1.0.0-rc.1+build.5.wasm")
    assert made.reference == Path("iris-1.0.0-rc.1+build.5.reference.json")


@pytest.mark.parametrize("name", ["", "Iris", "1st", "a/b", "a.b", "..", "a b", "é", "a" * 65, None, 7])
def test_invalid_name_is_rejected(name: Any) -> None:
    with pytest.raises(IdentityError, match="lower-case letters"):
        target(name=name)


@pytest.mark.parametrize("version", ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", None])
def test_invalid_version_is_rejected(version: Any) -> None:
    with pytest.raises(IdentityError, match="semantic version"):
        target(version=version)


@pytest.mark.parametrize(
    "changes",
    [
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
        {"tolerance": "much"},
        {"max_examples": 0},
        {"max_examples": 1001},
        {"max_batch_size": 0},
    ],
)
def test_number_out_of_range_is_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(IdentityError):
        target(**changes)


def test_folder_as_output_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="no file"):
        target(output=tmp_path)


def test_program_is_found_by_argument_variable_or_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "guesthouse"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GUESTHOUSE_BIN", raising=False)
    assert Program.find(None).path == str(installed)
    monkeypatch.setenv("GUESTHOUSE_BIN", "/bin/true")
    assert Program.find(None).path == "/bin/true"
    assert Program.find("/bin/false").path == "/bin/false"


def test_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("GUESTHOUSE_BIN", raising=False)
    with pytest.raises(ProgramError, match="GUESTHOUSE_BIN"):
        Program.find(None)
    with pytest.raises(ProgramError, match="absent"):
        Program.find("/absent/guesthouse")


def test_reasons_of_the_program_are_passed_on() -> None:
    rejection = _rejection('loading\nerror: failed to pack: tract has no operator Foo (node "x")\n')
    assert isinstance(rejection, RejectedError) and "operator Foo" in str(rejection)
    mismatch = _rejection("error: failed to pack: golden example 1: `y` is 2, not 1\n")
    assert isinstance(mismatch, DifferenceError) and "tolerance=" in str(mismatch)
