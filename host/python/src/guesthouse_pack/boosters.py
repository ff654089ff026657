"""Models of XGBoost and LightGBM, exported by onnxmltools."""

from __future__ import annotations

import copy
import os
import re
import warnings
from typing import Any

import onnx

from . import columns, estimators
from . import sample as samples
from .errors import ExportError, ModelError
from .extras import optional, require
from .packing import Exported, Packed, pack
from .target import MAX_EXAMPLES, TOLERANCE, Target

#: The newest version of ONNX that onnxmltools writes for both.
OPSET = 15


def xgboost(
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
    """Pack a fitted `XGBClassifier`, `XGBRegressor` or `XGBRanker`; as `sklearn` in all else."""
    target = Target.check(
        name=name,
        version=version,
        output=output,
        tolerance=tolerance,
        max_examples=max_examples,
        max_batch_size=max_batch_size,
        guesthouse=guesthouse,
    )
    return pack(export(model, sample, target.max_examples, "xgboost"), target)


def lightgbm(
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
    """Pack a fitted `LGBMClassifier`, `LGBMRegressor` or `LGBMRanker`; as `sklearn` in all else."""
    target = Target.check(
        name=name,
        version=version,
        output=output,
        tolerance=tolerance,
        max_examples=max_examples,
        max_batch_size=max_batch_size,
        guesthouse=guesthouse,
    )
    return pack(export(model, sample, target.max_examples, "lightgbm"), target)


def register() -> None:
    """Let skl2onnx convert these models where they are steps of a pipeline."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes as classifier,
    )
    from skl2onnx.common.shape_calculator import (
        calculate_linear_regressor_output_shapes as regressor,
    )

    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    if (trees := optional("xgboost")) is not None:
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost as convert

        update_registered_converter(
            trees.XGBClassifier, "XGBClassifier", classifier, convert, options=options, overwrite=True
        )
        update_registered_converter(
            trees.XGBRegressor, "XGBRegressor", regressor, convert, overwrite=True
        )
    if (trees := optional("lightgbm")) is not None:
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm as convert

        update_registered_converter(
            trees.LGBMClassifier, "LGBMClassifier", classifier, convert, options=options, overwrite=True
        )
        update_registered_converter(
            trees.LGBMRegressor,
            "LGBMRegressor",
            regressor,
            convert,
            options={"split": None},
            overwrite=True,
        )


def export(model: Any, sample: Any, max_examples: int, framework: str) -> Exported:
    """A fitted model in ONNX, with its own outputs for rows of the sample."""
    estimators.check(model, framework)
    library = require(framework, framework)
    require("onnxmltools", framework)
    if isinstance(model, library.Booster):
        prefix = {"xgboost": "XGB", "lightgbm": "LGBM"}[framework]
        raise ModelError(
            f"the model is a Booster, which does not say what its outputs mean: give an "
            f"{prefix}Classifier or {prefix}Regressor"
        )
    if type(model).__module__.split(".")[0] != framework:
        raise ModelError(
            f"{type(model).__name__} is no model of {framework}: pack a pipeline by guesthouse_pack.sklearn"
        )
    _check_fitted(model)
    table = samples.read(sample, _names(model, sample), model.n_features_in_)
    chosen = table.chosen(max_examples)
    exported = _convert(model, chosen.matrix.shape[1], framework)
    inputs = {"X": chosen.matrix}
    if table.is_named:
        columns.split(exported, "X", list(table.arrays))
        inputs = {name: chosen.matrix[:, place] for place, name in enumerate(table.arrays)}
    found = estimators.outputs(model, exported, chosen.rows)
    return Exported(
        exported,
        inputs,
        found,
        table.features(),
        classes=estimators.classes(model),
        labels=estimators.text_classes(model),
    )


def _check_fitted(model: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise ModelError(f"{type(model).__name__} is not fitted: call fit() first") from error


def _names(model: Any, sample: Any) -> list[str] | None:
    # A model of XGBoost raises an AttributeError if it was fitted without names.
    names = getattr(model, "feature_names_in_", None)
    if names is None or all(str(name) == f"Column_{place}" for place, name in enumerate(names)):
        return None
    # LightGBM writes `_` for spaces.
    known = {re.sub(r"\s", "_", str(name)): str(name) for name in getattr(sample, "columns", ())}
    return [known.get(str(name), str(name)) for name in names]


def _convert(model: Any, width: int, framework: str) -> onnx.ModelProto:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("X", FloatTensorType([None, width]))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported: onnx.ModelProto
            if framework == "lightgbm":
                exported = onnxmltools.convert_lightgbm(
                    model, initial_types=types, target_opset=OPSET, zipmap=False
                )
                return exported
            # The exporter expects the names of features that were fitted without names.
            nameless = copy.deepcopy(model)
            nameless.get_booster().feature_names = None
            nameless.get_booster().feature_types = None
            exported = onnxmltools.convert_xgboost(
                nameless, initial_types=types, target_opset=OPSET
            )
            return exported
    except Exception as error:  # the converters raise whatever they meet
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"onnxmltools cannot export {type(model).__name__}: {lines[0][:300]}"
        ) from error
