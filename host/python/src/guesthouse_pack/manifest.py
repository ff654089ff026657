"""The manifest of an ONNX model, which says what a guest does around the graph: texts in, texts out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .graph import Array, Value


@dataclass(frozen=True)
class TextColumn:
    """A column of texts, which the graph takes as the index of a text in a list."""

    field: str
    #: The texts of rows.
    values: Array
    categories: Sequence[str]
    #: Whether other texts are rejected; the graph takes -1 for them if not.
    rejects_others: bool

    def codes(self) -> Array:
        """What the graph takes."""
        import numpy

        places = {text: place for place, text in enumerate(self.categories)}
        codes = [[places.get(str(text), -1)] for text in self.values]
        return numpy.array(codes, "float32")


def of_table(
    columns: Mapping[str, TextColumn], outputs: Sequence[Value], labels: Mapping[str, Sequence[str]]
) -> str:
    """A manifest for columns of texts, by input of the graph, and for labels that are texts."""
    if not columns and not labels:
        return ""
    text = ""
    for graph, column in columns.items():
        unknown = "" if column.rejects_others else ", unknown = { code = -1 }"
        text += f"[[inputs]]\nname = {quoted(column.field)}\n"
        text += f"[[table]]\ngraph = {quoted(graph)}\n"
        texts = list_of(column.categories)
        text += f"columns = [{{ input = {quoted(column.field)}, categories = {texts}{unknown} }}]\n"
    if labels:
        for value in outputs:
            steps = ""
            if value.name in labels:
                steps = f"steps = [{{ labels = {list_of(labels[value.name])} }}]\n"
            text += output(value.field, value.name, steps)
    return text


def of_text(tokenizer: str, max_length: int, classes: Sequence[str] | None, outputs: Sequence[Value]) -> str:
    """A manifest for a text that becomes tokens, and for the classes of its logits."""
    text = '[[inputs]]\nname = "text"\n'
    text += f'[[tokenize]]\ninput = "text"\ntokenizer = {quoted(tokenizer)}\nmax_length = {max_length}\n'
    if classes is None:
        return text
    (logits,) = outputs
    text += output("label", logits.name, f'steps = ["argmax", {{ labels = {list_of(classes)} }}]\n')
    return text + output("probabilities", logits.name, 'steps = ["softmax"]\n')


def output(name: str, graph: str, steps: str) -> str:
    """A field that callers receive."""
    return f"[[outputs]]\nname = {quoted(name)}\ngraph = {quoted(graph)}\n{steps}"


def list_of(texts: Sequence[str]) -> str:
    """A list of texts in TOML."""
    return "[" + ", ".join(map(quoted, texts)) + "]"


def quoted(text: str) -> str:
    """A text in TOML, whose strings are those of JSON but for one control character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
