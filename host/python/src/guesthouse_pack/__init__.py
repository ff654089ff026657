"""Packs trained models into artifacts of Guesthouse, with golden examples of the framework itself.

Each function exports a model to ONNX by the framework's public exporter, takes golden examples from a
sample with the framework's outputs, and lets the program `guesthouse` make an artifact, which has to
reproduce them. If anything fails, it raises a `PackError` and writes no file.
"""

from .boosters import lightgbm, xgboost
from .errors import (
    DifferenceError,
    ExportError,
    IdentityError,
    MissingPackageError,
    ModelError,
    PackError,
    ProgramError,
    RejectedError,
    SampleError,
)
from .hugging_face import huggingface
from .onnx_file import onnx
from .packing import Packed
from .pytorch import torch
from .scikit_learn import sklearn

__all__ = [
    "DifferenceError",
    "ExportError",
    "IdentityError",
    "MissingPackageError",
    "ModelError",
    "PackError",
    "Packed",
    "ProgramError",
    "RejectedError",
    "SampleError",
    "huggingface",
    "lightgbm",
    "onnx",
    "sklearn",
    "torch",
    "xgboost",
]

__version__ = "0.1.0"
