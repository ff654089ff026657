"""Folders of Hugging Face with `tokenizer.json` and an ONNX file.

The guest takes what the tokenizer makes of a text: token ids and masks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from . import graph
from .errors import ModelError, SampleError
from .extras import require
from .graph import Array, Value
from .packing import Exported, Packed, pack
from .runtimes import run_onnxruntime
from .sample import choose
from .target import MAX_EXAMPLES, TOLERANCE, Target

#: Where exporters put the ONNX file, in the order in which it is looked for.
FILES = ("model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx")

#: The longest sequence of tokens of an example.
MAX_TOKENS = 512


def huggingface(
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    name: str,
    version: str,
    file: str | None = None,
    output: str | os.PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    max_examples: int = MAX_EXAMPLES,
    max_batch_size: int | None = None,
    guesthouse: str | os.PathLike[str] | None = None,
) -> Packed:
    """Pack the ONNX file of a folder, on the tokens of these texts.

    `file` is the ONNX file in the folder; by default `model.onnx` or `onnx/model.onnx`. The outputs of
    the golden examples are onnxruntime's, for each text alone.

    Raises `PackError` and writes nothing if the model is not packed.
    """
    target = Target.check(
        name=name,
        version=version,
        output=output,
        tolerance=tolerance,
        max_examples=max_examples,
        max_batch_size=max_batch_size,
        guesthouse=guesthouse,
    )
    path = _model_file(Path(folder), file)
    tokenizer = _tokenizer(Path(folder))
    require("onnxruntime", "huggingface")
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise SampleError("give a list of texts, at least one, such as ['good', 'bad']")
    model = graph.load(path)
    values = graph.inputs(model)
    chosen = [texts[place] for place in choose(len(texts), target.max_examples)]
    # Rows of one length, which arrays can hold: texts are cut, not padded, so that masks are all ones.
    encoded = [tokenizer.encode(text) for text in chosen]
    length = min(len(one.ids) for one in encoded)
    if not length:
        raise SampleError("a text has no tokens: give texts with words")
    given = {value.name: _tokens(value, encoded, min(length, MAX_TOKENS)) for value in values}
    found = run_onnxruntime(model, given)
    return pack(Exported(model, given, found, []), target)


def _model_file(folder: Path, file: str | None) -> Path:
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder: give the folder of the model")
    candidates = [folder / one for one in ((file,) if file else FILES)]
    for path in candidates:
        if path.is_file():
            return path
    raise ModelError(
        f"{folder} has none of {', '.join(file for file in ((file,) if file else FILES))}: export the "
        f"model by `optimum-cli export onnx --model {folder} {folder}`"
    )


def _tokenizer(folder: Path) -> Any:
    tokenizers = require("tokenizers", "huggingface")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json: save it by AutoTokenizer.from_pretrained(…).save_pretrained({str(folder)!r})"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain exceptions
        raise ModelError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _tokens(value: Value, encoded: Sequence[Any], length: int) -> Array:
    parts = {
        "input_ids": lambda one: one.ids,
        "attention_mask": lambda one: one.attention_mask,
        "token_type_ids": lambda one: one.type_ids,
    }
    part = parts.get(value.name)
    if part is None:
        raise ModelError(
            f"the graph's input `{value.name}` is not made by a tokenizer: pack it by guesthouse_pack.onnx"
        )
    if len(value.shape) == 2 and value.shape[1] is not None and value.shape[1] != length:
        raise SampleError(
            f"the graph takes exactly {value.shape[1]} tokens, and the shortest text has {length}: give "
            "longer texts, or export the model with a length that varies"
        )
    return numpy.array([part(one)[:length] for one in encoded], value.dtype)
