"""Makes iris.onnx, a pipeline of scikit-learn in ONNX, and oracle.jsonl, scikit-learn's own answers.

    pip install -r requirements.txt && python convert.py
"""

import json
import pathlib

import numpy
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER = pathlib.Path(__file__).parent
EXAMPLES = 12


def main():
    rows, species = load_iris(return_X_y=True)
    rows = rows.astype("f4")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, species)
    options = {id(pipeline): {"zipmap": False}}
    model = to_onnx(pipeline, rows[:1], target_opset=17, options=options)
    (FOLDER / "iris.onnx").write_bytes(model.SerializeToString())
    # Rows of the data and rows far away from it.
    generator = numpy.random.default_rng(3)
    chosen = numpy.concatenate(
        [rows[:: len(rows) // (EXAMPLES - 4)][: EXAMPLES - 4], generator.uniform(-3, 12, (4, 4)).astype("f4")]
    )
    labels, probabilities = pipeline.predict(chosen), pipeline.predict_proba(chosen)
    with (FOLDER / "oracle.jsonl").open("w") as oracle:
        for row, label, probability in zip(chosen.tolist(), labels.tolist(), probabilities.tolist()):
            outputs = {"label": label, "probabilities": probability}
            oracle.write(json.dumps({"inputs": {"X": row}, "outputs": outputs}) + "\n")


if __name__ == "__main__":
    main()
