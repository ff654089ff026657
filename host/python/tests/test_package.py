"""The package says of itself what the workspace does."""

from __future__ import annotations

import re
from pathlib import Path

import guesthouse_pack

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parents[1]


def value(file: Path, key: str) -> str:
    found = re.search(rf'^{key} = "([^"]*)"$', file.read_text(), re.MULTILINE)
    assert found is not None, f"{file} has no {key}"
    return found[1]


def test_version_and_licence_are_those_of_the_workspace() -> None:
    for key in ("version", "license"):
        assert value(PACKAGE / "pyproject.toml", key) == value(ROOT / "Cargo.toml", key)
    assert guesthouse_pack.__version__ == value(ROOT / "Cargo.toml", "version")
    for licence in ("LICENSE-APACHE", "LICENSE-MIT"):
        assert (PACKAGE / licence).read_text() == (ROOT / licence).read_text()


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "host/docs/src/how-to/python.md").read_text()
    readme = (PACKAGE / "README.md").read_text()
    for name in guesthouse_pack.__all__:
        assert getattr(guesthouse_pack, name).__doc__, name
        if name not in ("PackError", "Packed"):
            assert f"`{name}`" in page or f"guesthouse_pack.{name}(" in page, name
    for name in ("sklearn", "xgboost", "lightgbm", "torch", "huggingface", "onnx"):
        assert f"`{name}(" in readme, name


def test_modules_are_short_and_say_what_they_are_for() -> None:
    sources = sorted((PACKAGE / "src/guesthouse_pack").glob("*.py"))
    assert len(sources) >= 15
    for source in sources:
        lines = source.read_text().splitlines()
        assert lines[0].startswith('"""'), source
        assert len(lines) <= 350, source
        assert all(len(line) <= 130 for line in lines), source
