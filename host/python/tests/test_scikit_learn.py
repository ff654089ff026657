"""Estimators answer through ONNX what they answer themselves, on rows that are not in the sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy
import pytest

import guesthouse_pack
from conftest import answers
from guesthouse_pack import scikit_learn
from guesthouse_pack.errors import ExportError, ModelError, SampleError

pytest.importorskip("skl2onnx", reason="scikit-learn is not installed")

import pandas
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

ROWS, SPECIES = load_iris(return_X_y=True)
ROWS = ROWS.astype("f4").astype("f8")
SAMPLE, OTHERS = ROWS[::2], ROWS[1::2]
NAMES = numpy.array(["setosa", "versicolor", "virginica"])[SPECIES]
WIDTHS = ROWS[:, 0] * 2 + SPECIES


def mixed(rows: Any, species: Any) -> pandas.DataFrame:
    """A table with columns of several types."""
    return pandas.DataFrame(
        {"age": rows[:, 0], "size cm": rows[:, 1].astype("f4"), "kind": species, "flag": rows[:, 2] > 3}
    )


def with_texts(rows: Any, species: Any) -> pandas.DataFrame:
    """The same with a column of texts."""
    return mixed(rows, species).assign(leaf=numpy.where(rows[:, 3] > 1, "large \"leaf\"", "kleine Blätter"))


def columns_model(*texts: str) -> Any:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    chosen = ColumnTransformer(
        [
            ("numbers", numbers, ["age", "size cm"]),
            ("kinds", OneHotEncoder(handle_unknown="ignore"), ["kind"]),
            ("texts", OneHotEncoder(), list(texts)),
            ("rest", "passthrough", ["flag"]),
        ]
    )
    return make_pipeline(chosen, LogisticRegression())


CLASSIFIERS = [
    LogisticRegression(),
    GradientBoostingClassifier(n_estimators=5),
    SVC(probability=False),
    LinearSVC(),
    GaussianNB(),
    MLPClassifier(max_iter=30, random_state=1),
    GridSearchCV(LogisticRegression(), {"C": [1, 2]}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("labels", [SPECIES, NAMES, SPECIES > 0], ids=["numbers", "texts", "two"])
@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda one: type(one).__name__)
def test_classifier_answers_what_it_answers_itself(classifier: Any, labels: Any) -> None:
    classifier.fit(ROWS, labels)
    exported = scikit_learn.export(classifier, SAMPLE, 8)
    found = answers(exported, {"X": OTHERS})
    expected = classifier.predict(OTHERS)
    if labels is NAMES:
        assert exported.classes == ["setosa", "versicolor", "virginica"]
        expected = [exported.classes.index(label) for label in expected]
    assert found["label"].tolist() == [int(label) for label in expected]
    if hasattr(classifier, "predict_proba"):
        numpy.testing.assert_allclose(found["probabilities"], classifier.predict_proba(OTHERS), atol=1e-5)
    elif "probabilities" in exported.outputs:
        numpy.testing.assert_allclose(
            found["probabilities"], classifier.decision_function(OTHERS), atol=1e-4
        )


@pytest.mark.parametrize("regressor", [LinearRegression(), RandomForestRegressor(5)], ids=["linear", "forest"])
def test_regressor_answers_a_number_for_a_row(regressor: Any) -> None:
    exported = scikit_learn.export(regressor.fit(ROWS, WIDTHS), SAMPLE, 8)
    found = answers(exported, {"X": OTHERS})["prediction"]
    assert found.shape == (len(OTHERS),)
    numpy.testing.assert_allclose(found, regressor.predict(OTHERS), atol=1e-5)


def test_other_estimators_answer_their_outputs() -> None:
    clusters = KMeans(3, n_init=1, random_state=1).fit(ROWS)
    found = answers(scikit_learn.export(clusters, SAMPLE, 8), {"X": OTHERS})
    numpy.testing.assert_allclose(found["scores"], clusters.transform(OTHERS), atol=1e-3)
    assert found["label"].tolist() == clusters.predict(OTHERS).tolist()
    axes = PCA(2).fit(ROWS)
    found = answers(scikit_learn.export(axes, SAMPLE, 8), {"X": OTHERS})
    numpy.testing.assert_allclose(found["prediction"], axes.transform(OTHERS), atol=1e-5)
    forest = IsolationForest(n_estimators=5, random_state=1).fit(ROWS)
    found = answers(scikit_learn.export(forest, SAMPLE, 8), {"X": OTHERS})
    numpy.testing.assert_allclose(found["scores"], forest.decision_function(OTHERS), atol=1e-5)


def test_columns_of_mixed_types_are_inputs_of_their_own() -> None:
    table = mixed(ROWS, SPECIES)
    model = columns_model().fit(table, NAMES)
    exported = scikit_learn.export(model, table[::2], 8)
    assert {name: array.dtype.kind for name, array in exported.inputs.items()} == {
        "age": "f",
        "size_cm": "f",
        "kind": "i",
        "flag": "i",
    }
    others = table[1::2]
    found = answers(exported, {"size_cm": others["size cm"], **others})
    numpy.testing.assert_allclose(found["probabilities"], model.predict_proba(others), atol=1e-5)


@pytest.mark.parametrize("encoder", [OneHotEncoder(), OneHotEncoder(handle_unknown="ignore"), OrdinalEncoder()], ids=str)
def test_columns_of_texts_become_codes(encoder: Any) -> None:
    table = mixed(ROWS, SPECIES).assign(name=NAMES, size=numpy.where(ROWS[:, 2] > 3, "large", "small"))
    chosen = ColumnTransformer(
        [("texts", encoder, ["name", "size"]), ("rest", "passthrough", ["age", "kind"])]
    )  # Drops all others.
    model = make_pipeline(chosen, LogisticRegression(max_iter=1000)).fit(table, NAMES)
    exported = scikit_learn.export(model, table[::2], 8)
    assert set(exported.inputs) == {"age", "kind", "name.code", "size.code"}
    column = exported.texts["name.code"]
    assert column.field == "name" and set(column.categories) >= set(NAMES)
    assert column.rejects_others == (getattr(encoder, "handle_unknown", "") == "error")
    others = table[1::2]
    codes = {
        name: dataclasses.replace(text, values=others[text.field].to_numpy()).codes()
        for name, text in exported.texts.items()
    }
    found = answers(exported, {**others, **codes})
    numpy.testing.assert_allclose(found["probabilities"], model.predict_proba(others), atol=1e-5)


def test_columns_without_selection_are_inputs_as_well() -> None:
    table = mixed(ROWS, SPECIES)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(table, SPECIES)
    others = table[1::2]
    found = answers(scikit_learn.export(model, table[::2], 8), {**others})
    numpy.testing.assert_allclose(found["probabilities"], model.predict_proba(others), atol=1e-5)


def test_table_without_names_is_an_array() -> None:
    exported = scikit_learn.export(MODEL, pandas.DataFrame(SAMPLE), 8)
    assert list(exported.inputs) == ["X"]
    numpy.testing.assert_array_equal(exported.inputs["X"][0], SAMPLE[0].astype("f4"))


def test_examples_have_the_outputs_of_the_estimator() -> None:
    model = LogisticRegression().fit(ROWS, SPECIES)
    exported = scikit_learn.export(model, SAMPLE, 8)
    assert exported.inputs["X"].shape == (8, 4)
    expected = model.predict_proba(exported.inputs["X"].astype("f8"))
    assert exported.outputs["probabilities"].tolist() == expected.tolist()


class Doubler(StandardScaler):
    """A step that no exporter knows."""


MODEL = LogisticRegression().fit(ROWS, SPECIES)
TABLE = mixed(ROWS, SPECIES)
TABLE_MODEL = make_pipeline(StandardScaler(), LogisticRegression()).fit(TABLE, SPECIES)
TEXTS = TABLE.assign(name=NAMES)
TEXTS_MODEL = make_pipeline(
    ColumnTransformer([("names", OneHotEncoder(), ["name"])], remainder="passthrough"), LogisticRegression(max_iter=500)
).fit(TEXTS, SPECIES)
CUSTOM = make_pipeline(Doubler(), LogisticRegression()).fit(ROWS, SPECIES)
FUNCTION = make_pipeline(FunctionTransformer(numpy.abs), LogisticRegression()).fit(ROWS, SPECIES)


@pytest.mark.parametrize(
    ("model", "sample", "kind", "message"),
    [
        (LogisticRegression, SAMPLE, ModelError, "is a class"),
        (LogisticRegression(), SAMPLE, ModelError, "fit\\(\\)"),
        (make_pipeline(StandardScaler(), LogisticRegression()), SAMPLE, ModelError, "fit\\(\\)"),
        (7, SAMPLE, ModelError, "is no model of scikit-learn"),
        (CUSTOM, SAMPLE, ModelError, "Doubler"),
        (FUNCTION, SAMPLE, ExportError, "FunctionTransformer"),
        (MODEL, SAMPLE[:, :3], SampleError, "3 columns, and the model was fitted with 4"),
        (MODEL, SAMPLE[0], SampleError, "1 dimensions"),
        (MODEL, SAMPLE[:0], SampleError, "empty"),
        (MODEL, None, SampleError, "dimensions"),
        (MODEL, [[1.0], [1.0, 2.0]], SampleError, "no table"),
        (MODEL, [["a"] * 4], SampleError, "no numbers"),
        (MODEL, numpy.where(SAMPLE > 6, numpy.nan, SAMPLE), SampleError, "missing or infinite"),
        (MODEL, SAMPLE * 1e200, SampleError, "too large"),
        (TABLE_MODEL, TABLE.drop(columns="age"), SampleError, "lacks the columns \\['age'\\]"),
        (TABLE_MODEL, TABLE.assign(other=1), SampleError, "has the columns \\['other'\\]"),
        (TABLE_MODEL, TABLE.assign(age="old"), SampleError, "'age' has values of type"),
        (TABLE_MODEL, TABLE.assign(age=numpy.nan), SampleError, "column 'age' has a value in row 0"),
        (TABLE_MODEL, TABLE[:0], SampleError, "empty"),
        (TEXTS_MODEL, TEXTS.assign(name=[None, *NAMES[1:]]), SampleError, "which is no text"),
        (TEXTS_MODEL, TEXTS.assign(label=1)[[*TEXTS, "label"]], SampleError, "has the columns"),
    ],
)
def test_bad_model_or_sample_is_rejected(
    no_files: Path, program: str, model: Any, sample: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        guesthouse_pack.sklearn(model, sample, name="iris", version="1.0.0", guesthouse=program)


def test_output_in_the_way_of_an_exporter_that_errs_is_kept(tmp_path: Path, program: str) -> None:
    existing = tmp_path / "iris.wasm"
    existing.write_text("the last version")
    with pytest.raises(ModelError):
        guesthouse_pack.sklearn(CUSTOM, SAMPLE, name="iris", version="1.0.0", output=existing, guesthouse=program)
    assert existing.read_text() == "the last version"
    assert [path.name for path in tmp_path.iterdir()] == ["iris.wasm"]
