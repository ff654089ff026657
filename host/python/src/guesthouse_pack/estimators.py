"""What the classifiers, regressors and transformers of scikit-learn's kind answer, by output of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import onnx

from . import columns, graph
from .errors import ModelError
from .graph import Array
from .lowering import number_classes

#: The names that exporters give to outputs, and what they are called here.
_NAMES = {
    "output_label": "label",
    "output_probability": "probabilities",
    "variable": "prediction",
    "variable1": "prediction",
}

#: The methods of an estimator that may have computed an output, in the order in which they are tried.
_METHODS = {
    "label": ("predict",),
    "probabilities": ("predict_proba", "decision_function"),
    "prediction": ("predict", "transform"),
    "scores": ("decision_function", "transform", "score_samples"),
    "score_samples": ("score_samples",),
}


def check(model: Any, framework: str) -> None:
    """Reject what is no fitted model."""
    if isinstance(model, type):
        raise ModelError(
            f"{model.__name__} is a class and not a model: make an instance, fit it, and give that"
        )
    if not any(hasattr(model, method) for method in ("predict", "transform")):
        raise ModelError(f"{type(model).__name__} is no model of {framework}: give a fitted one")


def text_classes(model: Any) -> list[str] | None:
    """The labels of a classifier, if they are texts."""
    found = getattr(model, "classes_", None)
    if found is None or isinstance(found, list) or numpy.asarray(found).dtype.kind not in "OUS":
        return None
    return [str(one) for one in found]


def classes(model: Any) -> list[Any] | None:
    """The labels of a classifier: what the numbers of `label` stand for, or these numbers."""
    found = getattr(model, "classes_", None)
    if found is None or isinstance(found, list):
        return None
    known: list[Any] = numpy.asarray(found).tolist()
    return text_classes(model) or known


def outputs(model: Any, exported: onnx.ModelProto, rows: Any) -> dict[str, Array]:
    """What the model itself answers for rows, by output of its graph; those that it does not compute
    are left out. Outputs of one number for each row become numbers."""
    texts = text_classes(model)
    if texts is not None:
        number_classes(exported, texts)
    for name in [value.name for value in exported.graph.output]:
        if name in _NAMES:
            columns.rename_output(exported, name, _NAMES[name])
    found: dict[str, Array] = {}
    for value in graph.outputs(exported):
        answer = _answer(model, value.name, rows)
        if answer is None:
            continue
        if value.name == "label" and texts is not None:
            answer = numpy.array([texts.index(str(one)) for one in answer], "int64")
        if len(value.shape) == 2 and answer.ndim == 1:
            if value.shape[1] != 1:
                # Exporters do not agree on the scores of two classes without probabilities.
                continue
            columns.flatten_output(exported, value.name)
        elif len(value.shape) == 2 and answer.shape[1:] == (1,):
            columns.flatten_output(exported, value.name)
            answer = answer[:, 0]
        found[value.name] = answer
    return found


def _answer(model: Any, output: str, rows: Any) -> Array | None:
    for method in _METHODS.get(output, ()):
        # Some have the method and raise an error of its absence when it is called.
        function = getattr(model, method, None)
        if function is None:
            continue
        answer = function(rows)
        if hasattr(answer, "toarray"):
            answer = answer.toarray()
        return numpy.asarray(answer) if not isinstance(answer, list) else None
    return None


def foreign_steps(model: Any, own: Sequence[str]) -> list[str]:
    """The classes of steps that no exporter of these modules knows."""
    found: list[str] = []
    seen: set[int] = set()

    def visit(step: Any) -> None:
        if id(step) in seen or step is None or isinstance(step, (str, type)):
            return
        seen.add(id(step))
        module = type(step).__module__.split(".")[0]
        if hasattr(step, "fit") and module not in own:
            found.append(f"{type(step).__module__}.{type(step).__qualname__}")
        for attribute in ("steps", "transformers_", "transformers", "transformer_list", "estimators"):
            for entry in getattr(step, attribute, None) or ():
                for part in entry if isinstance(entry, tuple) else (entry,):
                    visit(part)
        for attribute in ("best_estimator_", "estimator", "final_estimator_"):
            visit(getattr(step, attribute, None))

    visit(model)
    return found
