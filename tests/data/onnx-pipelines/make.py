"""Makes small pipelines of scikit-learn in ONNX, and what scikit-learn itself computes for some rows.

    pip install -r ../onnx-manifest/requirements.txt && python make.py

The data is made here. Each pipeline is what skl2onnx exports by default: labels that are texts, and
probabilities in a ZipMap. Scores of classifiers that have no probabilities are onnxruntime's.
"""

import json
import pathlib
import warnings

import numpy
import onnxruntime
import pandas
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier

FOLDER = pathlib.Path(__file__).parent
OPSET = 17
warnings.filterwarnings("ignore")

generator = numpy.random.default_rng(7)
COUNT = 200
NUMBERS = generator.normal(0, 2, (COUNT, 4)).astype("f4")
SUM = NUMBERS @ numpy.array([1, -0.5, 0.25, 0.1], "f4")
LABELS = numpy.where(SUM < -1, "low", numpy.where(SUM < 1, "middle", "high"))
TWO = numpy.where(SUM < 0, "no", "yes")
MISSING = NUMBERS.copy()
MISSING[generator.random(MISSING.shape) < 0.15] = numpy.nan
FRAME = pandas.DataFrame(
    {
        "size": MISSING[:, 0],
        "age": NUMBERS[:, 1],
        "colour": generator.choice(["red", "green", "blue"], COUNT),
        "shape": generator.choice(["round", "flat"], COUNT),
        "code": generator.integers(0, 4, COUNT),
    }
)
TYPES = {"size": FloatTensorType, "age": FloatTensorType, "colour": StringTensorType, "shape": StringTensorType, "code": Int64TensorType}

CLASSIFIERS = {
    "logistic": (make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()), MISSING, LABELS),
    "two_classes": (make_pipeline(StandardScaler(), LogisticRegression()), NUMBERS, TWO),
    "forest": (make_pipeline(MinMaxScaler(), RandomForestClassifier(5, max_depth=4, random_state=1)), NUMBERS, LABELS),
    "tree": (DecisionTreeClassifier(max_depth=4), NUMBERS, TWO),
    "boosting": (GradientBoostingClassifier(n_estimators=6, max_depth=2, random_state=1), NUMBERS, LABELS),
    "boosting_two": (GradientBoostingClassifier(n_estimators=6, max_depth=2, random_state=1), NUMBERS, TWO),
    "neurons": (make_pipeline(RobustScaler(), MLPClassifier((8,), max_iter=300, random_state=1)), NUMBERS, LABELS),
    "bayes": (GaussianNB(), NUMBERS, LABELS),
    "neighbours": (KNeighborsClassifier(3), NUMBERS[:60], LABELS[:60]),
    "discriminant": (make_pipeline(PCA(3), LinearDiscriminantAnalysis()), NUMBERS, LABELS),
    "bins": (make_pipeline(KBinsDiscretizer(4, encode="onehot-dense"), LogisticRegression()), NUMBERS, LABELS),
    "binary": (make_pipeline(Binarizer(threshold=0.3), LogisticRegression()), NUMBERS, LABELS),
    "polynomial": (make_pipeline(PolynomialFeatures(2), Normalizer(), LogisticRegression()), NUMBERS, LABELS),
    "selected": (make_pipeline(SelectKBest(k=2), LogisticRegression()), NUMBERS, LABELS),
    "gradient": (SGDClassifier(loss="log_loss", random_state=1), NUMBERS, LABELS),
    "linear_svc": (LinearSVC(random_state=1), NUMBERS, TWO),
    "svc": (SVC(), NUMBERS, TWO),
    "svc_probabilities": (SVC(probability=True, random_state=1), NUMBERS, LABELS),
    "svc_three": (SVC(kernel="linear"), NUMBERS, LABELS),
    "votes": (
        VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())], voting="soft", flatten_transform=False),
        NUMBERS,
        LABELS,
    ),
    "ada": (AdaBoostClassifier(n_estimators=4, random_state=1), NUMBERS, TWO),
}

REGRESSORS = {
    "ridge": (make_pipeline(SimpleImputer(strategy="constant", fill_value=1), Ridge()), MISSING),
    "forest_regressor": (RandomForestRegressor(5, max_depth=4, random_state=1), NUMBERS),
    "boosting_regressor": (GradientBoostingRegressor(n_estimators=6, max_depth=2, random_state=1), NUMBERS),
    "svr": (SVR(), NUMBERS),
    "svr_polynomial": (SVR(kernel="poly", degree=2, coef0=1), NUMBERS),
}


def columns(encode):
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return ColumnTransformer([("numbers", numbers, ["size", "age"]), ("others", encode, ["colour", "shape", "code"])])


FRAMES = {
    "one_hot": make_pipeline(columns(OneHotEncoder(handle_unknown="ignore")), LogisticRegression()),
    "ordinal": make_pipeline(columns(OrdinalEncoder()), RandomForestClassifier(4, max_depth=4, random_state=1)),
}


def save(name, model, inputs, outputs):
    (FOLDER / f"{name}.onnx").write_bytes(model.SerializeToString())
    (FOLDER / f"{name}.json").write_text(json.dumps({"inputs": inputs, "outputs": outputs}) + "\n")


def classified(model, rows):
    outputs = {"output_label": model.predict(rows).tolist()}
    if hasattr(model, "predict_proba"):
        outputs["output_probability"] = model.predict_proba(rows).tolist()
    return outputs


def scores(exported, rows):
    """What decides between classes, as onnxruntime has it."""
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"X": rows})[1]
    return [list(map(float, row.values() if isinstance(row, dict) else row)) for row in found]


def main():
    for name, (model, rows, labels) in CLASSIFIERS.items():
        model.fit(rows, labels)
        first = rows[:12]
        try:
            exported = to_onnx(model, rows[:1], target_opset=OPSET)
        except Exception as error:
            print(name, "is not exported:", str(error)[:200])
            continue
        names = [output.name for output in exported.graph.output]
        outputs = dict(zip(names, classified(model, first).values()))
        if len(outputs) == 1:
            outputs[names[1]] = scores(exported, first)
        save(name, exported, {"X": [[None if numpy.isnan(x) else float(x) for x in row] for row in first]}, outputs)
    for name, (model, rows) in REGRESSORS.items():
        model.fit(rows, SUM)
        first = rows[:12]
        exported = to_onnx(model, rows[:1], target_opset=OPSET)
        outputs = {exported.graph.output[0].name: model.predict(first).tolist()}
        save(name, exported, {"X": [[None if numpy.isnan(x) else float(x) for x in row] for row in first]}, outputs)
    for name, model in FRAMES.items():
        model.fit(FRAME, LABELS)
        types = [(column, kind([None, 1])) for column, kind in TYPES.items()]
        exported = to_onnx(model, initial_types=types, target_opset=OPSET)
        first = FRAME[:12]
        inputs = {
            column: [[None if isinstance(x, float) and numpy.isnan(x) else x] for x in first[column].tolist()]
            for column in TYPES
        }
        save(name, exported, inputs, classified(model, first))
    clusters = KMeans(3, n_init=1, random_state=1).fit(NUMBERS)
    exported = to_onnx(clusters, NUMBERS[:1], target_opset=OPSET)
    save("clusters", exported, {"X": NUMBERS[:12].tolist()}, {exported.graph.output[0].name: clusters.predict(NUMBERS[:12]).tolist()})


if __name__ == "__main__":
    main()
