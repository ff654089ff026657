"""Models of frameworks other than scikit-learn answer what they answer themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
from onnx import TensorProto, helper

import guesthouse_pack
from conftest import Server, answers
from guesthouse_pack import boosters, scikit_learn
from guesthouse_pack.errors import ModelError, SampleError
from test_scikit_learn import NAMES, ROWS, SAMPLE, SPECIES, WIDTHS, mixed

OTHERS = ROWS[1::2]
NO_TORCH = "torch is not installed: its wheel is too large for these tests"
TABLE = mixed(ROWS, SPECIES)


def xgboost_models() -> list[Any]:
    xgboost = pytest.importorskip("xgboost")
    two = SPECIES > 0
    return [
        ("xgboost", xgboost.XGBClassifier(n_estimators=5), SPECIES),
        ("xgboost", xgboost.XGBClassifier(n_estimators=5), two.astype(int)),
        ("xgboost", xgboost.XGBRegressor(n_estimators=5), WIDTHS),
    ]


def lightgbm_models() -> list[Any]:
    lightgbm = pytest.importorskip("lightgbm")
    return [
        ("lightgbm", lightgbm.LGBMClassifier(n_estimators=5, verbose=-1), NAMES),
        ("lightgbm", lightgbm.LGBMClassifier(n_estimators=5, verbose=-1), (SPECIES > 0).astype(int)),
        ("lightgbm", lightgbm.LGBMRegressor(n_estimators=5, verbose=-1), WIDTHS),
    ]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("models", [xgboost_models, lightgbm_models])
def test_trees_answer_what_they_answer_themselves(models: Callable[[], list[Any]], place: int) -> None:
    framework, model, labels = models()[place]
    for rows, others in ((ROWS, OTHERS), (TABLE, TABLE[1::2])):
        model.fit(rows, labels)
        exported = boosters.export(model, rows[::2], 8, framework)
        given = {"X": others} if rows is ROWS else {"size_cm": others["size cm"], **others}
        given = {name: given.get(name, given.get(name.replace("_", " "))) for name in exported.inputs}
        found = answers(exported, given)
        if hasattr(model, "predict_proba"):
            numpy.testing.assert_allclose(found["probabilities"], model.predict_proba(others), atol=1e-5)
            labels_found = numpy.asarray(exported.classes)[found["label"]] if labels is NAMES else found["label"]
            assert labels_found.tolist() == model.predict(others).tolist()
        else:
            numpy.testing.assert_allclose(found["prediction"], model.predict(others), atol=1e-4)


@pytest.mark.parametrize("framework", ["xgboost", "lightgbm"])
def test_bad_trees_are_rejected(no_files: Path, program: str, framework: str) -> None:
    library = pytest.importorskip(framework)
    pack: Any = getattr(guesthouse_pack, framework)
    kind = library.XGBClassifier if framework == "xgboost" else library.LGBMClassifier
    fitted = kind(n_estimators=2).fit(ROWS, SPECIES)
    booster = fitted.get_booster() if framework == "xgboost" else fitted.booster_
    arguments: dict[str, Any] = {"name": "iris", "version": "1.0.0", "guesthouse": program}
    for model, sample, error, message in (
        (kind, SAMPLE, ModelError, "is a class"),
        (kind(), SAMPLE, ModelError, "fit\\(\\)"),
        (booster, SAMPLE, ModelError, "Booster"),
        (fitted, SAMPLE[:, :2], SampleError, "2 columns"),
        (fitted, SAMPLE[:0], SampleError, "empty"),
    ):
        with pytest.raises(error, match=message):
            pack(model, sample, **arguments)


def test_trees_are_steps_of_a_pipeline() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    trees = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1)
    # A scaler by powers of two loses nothing in single precision.
    model = make_pipeline(MinMaxScaler().fit(ROWS), trees).fit(ROWS, WIDTHS)
    model.steps[0][1].scale_[:] = 0.5
    model.steps[0][1].min_[:] = 0.0
    trees.fit(model[:-1].transform(ROWS), WIDTHS)
    found = answers(scikit_learn.export(model, SAMPLE, 8), {"X": OTHERS})
    numpy.testing.assert_allclose(found["prediction"], model.predict(OTHERS), atol=1e-4)


def folder_of_a_classifier(folder: Path) -> None:
    """A folder as optimum writes it: a tokenizer and a graph that adds up the embeddings of tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "good": 1, "bad": 2, "film": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = numpy.array([[0, 0], [1, -1], [-1, 1], [0.25, 0.5]], "f4")
    shape = ["batch", "length"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", "input_ids"], ["embedded"]),
            helper.make_node("Cast", ["attention_mask"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "axis"], ["mask"]),
            helper.make_node("Mul", ["embedded", "mask"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "one"], ["logits"], keepdims=0),
        ],
        "sum",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            onnx.numpy_helper.from_array(weights, "weights"),
            onnx.numpy_helper.from_array(numpy.array([2]), "axis"),
            onnx.numpy_helper.from_array(numpy.array([1]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    labels = {"architectures": ["SumForSequenceClassification"], "id2label": {"0": "good", "1": "bad"}}
    (folder / "config.json").write_text(json.dumps(labels))
    (folder / "onnx").mkdir()
    onnx.save(model, folder / "onnx/model.onnx")


def test_models_answer_over_http_what_they_answer_themselves(
    tmp_path: Path, program: str, serve: Callable[[Path], Server]
) -> None:
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    repository, folder = tmp_path / "repository", tmp_path / "folder"
    folder.mkdir()
    folder_of_a_classifier(folder)
    arguments: dict[str, Any] = {"version": "1.0.0", "guesthouse": program}
    light = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1).fit(TABLE, NAMES)
    path = repository / "light-1.0.0.wasm"
    packed = guesthouse_pack.lightgbm(light, TABLE[::2], name="light", output=path, **arguments)
    assert packed.guest_difference["probabilities"] < 1e-5
    extreme = xgboost.XGBRegressor(n_estimators=20).fit(ROWS, WIDTHS)
    path = repository / "extreme-1.0.0.wasm"
    guesthouse_pack.xgboost(extreme, SAMPLE, name="extreme", output=path, **arguments)
    path = repository / "texts-1.0.0.wasm"
    guesthouse_pack.huggingface(folder, ["good film", "bad film"], name="texts", output=path, **arguments)

    server = serve(repository)
    others = TABLE[1::2]
    for row, expected in zip(others.to_dict("records"), light.predict_proba(others), strict=True):
        given = {name.replace(" ", "_"): float(value) for name, value in row.items()}
        answer = server.predict("light", given)
        numpy.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        assert answer["label"] == light.classes_[expected.argmax()]
    for numbers, number in zip(OTHERS, extreme.predict(OTHERS), strict=True):
        answer = server.predict("extreme", {"X": numbers.tolist()})
        assert answer["prediction"] == pytest.approx(float(number), abs=1e-4)
    answer = server.predict("texts", {"text": "bad film film film"})
    powers = numpy.exp([-1 + 3 * 0.25, 1 + 3 * 0.5])
    assert answer["label"] == "bad"
    assert answer["probabilities"] == pytest.approx((powers / powers.sum()).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("texts", "change", "kind", "message"),
    [
        (["good"], "tokenizer.json", ModelError, "save_pretrained"),
        (["good"], "onnx/model.onnx", ModelError, "optimum-cli export onnx"),
        ([], None, SampleError, "list of texts"),
        ("good", None, SampleError, "list of texts"),
        ([1], None, SampleError, "list of texts"),
        (["", "good"], None, SampleError, "no tokens"),
    ],
)
def test_bad_folder_or_texts_are_rejected(
    tmp_path: Path, program: str, texts: Any, change: str | None, kind: type[Exception], message: str
) -> None:
    folder_of_a_classifier(tmp_path)
    if change:
        (tmp_path / change).unlink()
    output = tmp_path / "out/texts.wasm"
    with pytest.raises(kind, match=message):
        guesthouse_pack.huggingface(
            tmp_path, texts, name="texts", version="1.0.0", output=output, guesthouse=program
        )
    assert not output.parent.exists()


def test_module_answers_over_http_what_it_answers_itself(
    tmp_path: Path, program: str, serve: Callable[[Path], Server]
) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    rows = torch.tensor(ROWS, dtype=torch.float32)
    path = tmp_path / "repository/net-1.0.0.wasm"
    guesthouse_pack.torch(module, rows[::2], name="net", version="1.0.0", output=path, guesthouse=program)
    server = serve(path.parent)
    for row, expected in zip(rows[1::2], module(rows[1::2]).tolist(), strict=True):
        assert server.predict("net", {"input": row.tolist()})["output"] == pytest.approx(expected, abs=1e-4)


def test_bad_module_or_tensors_are_rejected(no_files: Path, program: str) -> None:
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    module, rows = torch.nn.Linear(4, 2), torch.zeros(3, 4)
    for given, inputs, kind, message in (
        (torch.nn.Linear, rows, ModelError, "is a class"),
        (7, rows, ModelError, "no torch.nn.Module"),
        (module, rows[:0], SampleError, "empty"),
        (module, [], SampleError, "empty"),
        (module, torch.tensor(1.0), SampleError, "no tensor of rows"),
        (module, torch.zeros(3, 5), SampleError, "fails on the sample"),
        (module, rows * float("nan"), SampleError, "missing or infinite"),
        (torch.nn.Bilinear(4, 4, 1), [rows, rows[:2]], SampleError, "same number of rows"),
    ):
        with pytest.raises(kind, match=message):
            guesthouse_pack.torch(given, inputs, name="net", version="1.0.0", guesthouse=program)


def test_missing_framework_names_its_extra(
    no_files: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"guesthouse-pack\[torch\]"):
        guesthouse_pack.torch(json, ROWS, name="net", version="1.0.0", guesthouse=program)
