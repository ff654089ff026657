"""Estimators and pipelines of scikit-learn, exported by skl2onnx."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import onnx

from . import columns, estimators, graph, texts
from . import sample as samples
from .errors import ExportError, ModelError
from .extras import optional, require
from .manifest import TextColumn
from .packing import Exported, Packed, pack
from .sample import Sample
from .target import MAX_EXAMPLES, TOLERANCE, Target

#: The versions of ONNX and of `ai.onnx.ml` that are exported, which guests know.
OPSET = {"": 17, "ai.onnx.ml": 3}


def sklearn(
    model: Any,
    sample: Any,
    *,
    name: str,
    version: str,
    output: str | os.PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    max_examples: int = MAX_EXAMPLES,
    max_batch_size: int | None = None,
    guesthouse: str | os.PathLike[str] | None = None,
) -> Packed:
    """Pack a fitted estimator or pipeline.

    `sample` has rows as `predict` takes them: an array, which becomes the input `X`, or a table of
    pandas, each column of which becomes an input. Some rows become golden examples with the
    estimator's own outputs; all rows are summarised in the drift reference.

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
    return pack(export(model, sample, target.max_examples), target)


def export(model: Any, sample: Any, max_examples: int) -> Exported:
    """A fitted model in ONNX, with its own outputs for rows of the sample."""
    estimators.check(model, "scikit-learn")
    require("sklearn", "sklearn")
    require("skl2onnx", "sklearn")
    _check_fitted(model)
    width = getattr(model, "n_features_in_", None)
    table = samples.read(sample, _names(model), width, takes_texts=_selects_columns(model))
    chosen = table.chosen(max_examples)
    _register_boosters()
    exported, inputs, columns_of_texts = _export(model, chosen)
    found = estimators.outputs(model, exported, chosen.rows)
    return Exported(
        exported,
        inputs,
        found,
        table.features(),
        classes=estimators.classes(model),
        texts=columns_of_texts,
        labels=estimators.text_classes(model),
    )


def _check_fitted(model: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise ModelError(f"{type(model).__name__} is not fitted: call fit() first") from error
    except TypeError as error:
        raise ModelError(f"{type(model).__name__} is no estimator of scikit-learn: {error}") from error


def _names(model: Any) -> list[str] | None:
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]


def _export(
    model: Any, table: Sample
) -> tuple[onnx.ModelProto, dict[str, Any], dict[str, TextColumn]]:
    """The graph, and what its inputs are for these rows: arrays, and columns of texts."""
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    if table.is_named and _selects_columns(model):
        kinds = {"f": FloatTensorType, "i": Int64TensorType, "O": StringTensorType}
        types = [(name, kinds[array.dtype.kind]([None, 1])) for name, array in table.arrays.items()]
        exported = _convert(model, types)
        columns.drop_unused(exported)
        # The exporter changes names such as `sepal width`.
        fields = {graph.field_name(name): array for name, array in table.arrays.items()}
        names = {value.name for value in exported.graph.input}
        found = {name: fields[graph.field_name(name)] for name in names}
        strings = {name for name, array in found.items() if array.dtype.kind == "O"}
        columns_of_texts = _encode_texts(exported, {name: found.pop(name) for name in sorted(strings)})
        columns.flatten_inputs(exported, set(columns_of_texts))
        codes = {name: column.codes() for name, column in columns_of_texts.items()}
        return exported, found | codes, columns_of_texts
    exported = _convert(model, [("X", FloatTensorType([None, table.matrix.shape[1]]))])
    if not table.is_named:
        return exported, {"X": table.matrix}, {}
    columns.split(exported, "X", list(table.arrays))
    return exported, {name: table.matrix[:, place] for place, name in enumerate(table.arrays)}, {}


def _encode_texts(exported: onnx.ModelProto, found: dict[str, Any]) -> dict[str, TextColumn]:
    if not found:
        return {}
    categories, rejects = texts.encode(exported)
    if not categories:
        raise ModelError(
            f"no step encodes the texts of {', '.join(found)}: encode them by OneHotEncoder or OrdinalEncoder"
        )
    return {
        name + texts.CODE: TextColumn(graph.field_name(name), array, categories, rejects)
        for name, array in found.items()
    }


def _selects_columns(model: Any) -> bool:
    """Whether a part of the model takes some of the columns, by name."""
    if type(model).__name__ == "ColumnTransformer":
        return True
    parts = [step for _, step in getattr(model, "steps", ())]
    parts += [getattr(model, "best_estimator_", None), getattr(model, "estimator", None)]
    parts += [part for _, part in getattr(model, "transformer_list", ())]
    return any(_selects_columns(part) for part in parts if part is not None)


def _convert(model: Any, types: Any) -> onnx.ModelProto:
    import skl2onnx
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    final = getattr(model, "best_estimator_", model)
    last = final.steps[-1][1] if hasattr(final, "steps") else final
    # Some classifiers do not know the first option and return arrays anyway; the exporter adds it to
    # the last step of a pipeline that has no options at all.
    choices: list[dict[int, dict[str, bool]]] = [{}]
    if hasattr(final, "classes_"):
        choices = [{id(final): {"zipmap": False}}, {id(last): {"raw_scores": False}}]
    for options in choices:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported: onnx.ModelProto = skl2onnx.convert_sklearn(
                    final, initial_types=types, target_opset=OPSET, options=options or None
                )
                return exported
        except NameError:
            continue
        except (MissingConverter, MissingShapeCalculator) as error:
            foreign = estimators.foreign_steps(model, ("sklearn",))
            steps = ", ".join(foreign) or "a step"
            raise ModelError(
                f"skl2onnx has no converter for {steps}: replace it by steps of scikit-learn, "
                "register a converter by skl2onnx.update_registered_converter, or write a guest"
            ) from error
        except Exception as error:  # the converters raise whatever they meet
            raise ExportError(
                f"skl2onnx cannot export {type(final).__name__}: {_short(error)}. Use another "
                "estimator, or write a guest"
            ) from error
    raise ExportError(
        f"skl2onnx cannot export {type(final).__name__} without dictionaries in its outputs: use "
        "another estimator, or write a guest"
    )


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" and attributes=")[0][:300].rstrip(".")


def _register_boosters() -> None:
    """Let skl2onnx know models of LightGBM and XGBoost in a pipeline, if they are in use."""
    if not {"lightgbm", "xgboost"} & set(sys.modules) or optional("onnxmltools") is None:
        return
    from .boosters import register

    register()
