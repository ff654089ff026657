"""Folders of Hugging Face with `tokenizer.json` and an ONNX file.

The guest takes a text, which the tokenizer of the folder makes into tokens. For a classifier of texts, it returns the
label and the probabilities of all labels, otherwise the outputs of the graph.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from . import golden, graph, manifest, reference
from .errors import ModelError, SampleError
from .extras import require
from .graph import Array, Value
from .packing import Files, Packed, finish
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
    inputs, outputs = graph.inputs(model), graph.outputs(model)
    classes = _classes(Path(folder), outputs)
    chosen = [texts[place] for place in choose(len(texts), target.max_examples)]
    examples = [_example(path, tokenizer, inputs, outputs, text, classes) for text in chosen]
    files = Files(
        model,
        golden.bounded(examples),
        manifest.of_text("tokenizer.json", tokenizer.truncation["max_length"], classes, outputs),
        {"tokenizer.json": Path(folder) / "tokenizer.json"},
    )
    features = [reference.Feature("text", "length of text", numpy.array([len(text) for text in texts]))]
    return finish(files, features, classes, None, target)


def _example(
    path: Path, tokenizer: Any, inputs: list[Value], outputs: list[Value], text: str, classes: list[str] | None
) -> str:
    """A golden example of a text, with onnxruntime's outputs."""
    encoded = tokenizer.encode(text)
    if not encoded.ids:
        raise SampleError(f"the text {text!r} has no tokens: give texts with words")
    found = run_onnxruntime(path, {value.name: _tokens(value, encoded) for value in inputs})
    answers = {value.field: found[value.name] for value in outputs}
    if classes is not None:
        (logits,) = answers.values()
        powers = numpy.exp(logits.astype("f8") - logits.max())
        label = numpy.array([classes[int(logits.argmax())]], "object")
        answers = {"label": label, "probabilities": powers / powers.sum()}
    (line,) = golden.lines({"text": numpy.array([text], "object")}, answers)
    return line


def _classes(folder: Path, outputs: list[Value]) -> list[str] | None:
    """The labels of a classifier of texts, in the order of its logits."""
    path = folder / "config.json"
    if not path.is_file() or len(outputs) != 1 or len(outputs[0].shape) != 2:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    architectures = config.get("architectures") or [""]
    names = config.get("id2label") or {}
    is_classifier = str(architectures[0]).endswith("ForSequenceClassification")
    if not is_classifier or not names or config.get("problem_type") == "multi_label_classification":
        return None
    classes = [str(names.get(str(place), place)) for place in range(len(names))]
    if outputs[0].shape[1] not in (None, len(classes)):
        raise ModelError(
            f"config.json has {len(classes)} labels, and the graph {outputs[0].shape[1]} logits: correct id2label"
        )
    return classes


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
    # A tokenizer that truncates does so at the length that its model was trained with.
    truncation = tokenizer.truncation or {}
    tokenizer.enable_truncation(min(truncation.get("max_length", MAX_TOKENS), MAX_TOKENS))
    return tokenizer


def _tokens(value: Value, encoded: Any) -> Array:
    parts = {
        "input_ids": encoded.ids,
        "attention_mask": encoded.attention_mask,
        "token_type_ids": encoded.type_ids,
    }
    if value.name not in parts:
        raise ModelError(
            f"the graph's input `{value.name}` is not made by a tokenizer: pack it by guesthouse_pack.onnx"
        )
    return numpy.array([parts[value.name]], value.dtype)
