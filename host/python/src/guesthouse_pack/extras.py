"""Imports of packages that only some functions need, when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import MissingPackageError


def require(module: str, extra: str) -> ModuleType:
    """Import a module, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"this needs the package of `{module}` ({error}): "
            f'run pip install "guesthouse-pack[{extra}]"'
        ) from error


def optional(module: str) -> ModuleType | None:
    """Import a module if it is installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
