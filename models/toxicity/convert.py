"""Makes the toxicity model's data from the alt-profanity-check package.

    pip install -r requirements.txt && python convert.py

Writes assets/model.onnx, assets/vocabulary.tsv, each version's golden.jsonl and LICENSE
(byte-identical on every run; README.md says what they are), then checks the written files
against scikit-learn: the features computed from vocabulary.tsv as a guest has to compute
them, and the score by onnxruntime.
"""
import collections
import json
import math
import pathlib
import random
import re
import tomllib
from importlib import metadata, resources

import joblib
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

PACKAGE = "alt-profanity-check"
HERE = pathlib.Path(__file__).resolve().parent

GOLDEN = [
    "You are nice",
    "Thank you for your help with the article, it reads much better now.",
    "You are an idiot",
    "What a load of rubbish",
    "sToP bEiNg So StUpId, SHUT UP",
    "That is lame",  # toxic for 1.0.0 only
    "Most of this page is boring nonsense",  # toxic for 1.0.0 only
    "one line\tstupid\r\nanother line",  # white space inside
    "I love Beyonc\u00e9, JOS\u00c9 and POK\u00c9MON",  # accents of vocabulary terms
    "Pokemo\u0301n, poke\u0301mon",  # a combining mark ends a word
    "\u0395\u03a4\u0397\u03a4\u0397\u03a3 \u039c\u0395\u039b",  # final sigma: lower case is a term
    "\u0395\u03a4\u0397\u03a4\u0397\u03a3\u0391\u039d \u039c\u0395\u039b",  # sigma that is not final
    "\u8ff7\u60d1 \u9023\u7d61\u3001\u898b\u5b66\u3002\u8ff7\u60d1\u9023\u7d61",  # CJK words, and two run together
    "\u12cd\u12ed\u12ed\u1275 \u2014 discussion",  # Ethiopic
    "you \U0001f600 fool \U0001f44d\U0001f3fd stu\U0001f921pid",  # emoji end a word
    "\uff33\uff34\uff35\uff30\uff29\uff24 \uff4c\uff4f\uff53\uff45\uff52",  # full-width letters are not folded
    "fair_use, User_Talk and __TOC__ are stupid_words",  # an underscore is part of a word
    "\u0130diot d\u0130ot \u0131diot",  # Turkish I: dotted capital (two code points in lower case), dotless
    "you suc\u212a",  # the Kelvin sign's lower case is k
    "stupid\u00b2 silly\u200dgoose",  # a superscript is part of a word, a zero-width joiner is not
    *("a b c d", "the and of to be", "xyzzyq plughq"),  # one-letter, stop and unknown words only
    ("stop being so silly, please stop; " * 50).strip(" ;"),  # long and repetitive
]


def build_onnx(model):
    """The mean of five calibrated linear classifiers: sigmoid(-(a * (weights . coef + intercept) + b))."""
    parts = model.calibrated_classifiers_
    sigmoids = [calibrator for part in parts for calibrator in part.calibrators]
    assert model.classes_.tolist() == [0, 1] and len(sigmoids) == len(parts) == 5 and model.method == "sigmoid"
    constants = {
        "coefficients": np.stack([part.estimator.coef_[0] for part in parts], axis=1),
        "intercepts": [part.estimator.intercept_[0] for part in parts],
        "a": [sigmoid.a_ for sigmoid in sigmoids],
        "b": [sigmoid.b_ for sigmoid in sigmoids],
    }
    initializers = [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in constants.items()]
    initializers.append(numpy_helper.from_array(np.array([1]), "axis_1"))
    nodes = [
        helper.make_node("Gather", ["coefficients", "terms"], ["term_rows"], axis=0),  # [rows, terms, 5]
        helper.make_node("Unsqueeze", ["weights", "axis_1"], ["weight_rows"]),  # [rows, 1, terms]
        helper.make_node("MatMul", ["weight_rows", "term_rows"], ["sums"]),  # [rows, 1, 5]
        helper.make_node("Squeeze", ["sums", "axis_1"], ["products"]),  # [rows, 5]
        helper.make_node("Add", ["products", "intercepts"], ["decisions"]),
        helper.make_node("Mul", ["decisions", "a"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["shifted"]),
        helper.make_node("Neg", ["shifted"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("ReduceMean", ["probabilities"], ["score"], axes=[1], keepdims=0),  # [rows]
    ]
    inputs = [
        helper.make_tensor_value_info("terms", TensorProto.INT64, ["rows", "terms"]),
        helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["rows", "terms"]),
    ]
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])
    result = helper.make_model(
        helper.make_graph(nodes, "toxicity", inputs, [output], initializers),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
        producer_name="guesthouse models/toxicity/convert.py",
        doc_string="How likely each text is toxic (0 to 1). A row holds a text's vocabulary term numbers "
        "and their tf-idf weights (length 1); pad with any term number and weight 0.",
    )
    helper.set_model_props(result, {"source": f"PyPI {PACKAGE} {metadata.version(PACKAGE)}", "license": "MIT"})
    onnx.checker.check_model(result, full_check=True)
    return result


def features(text, terms, idf):
    """What a guest computes: {term number: weight} of one text."""
    words = re.findall(r"\w\w+", text.lower())  # runs of two or more word characters
    counts = collections.Counter(terms[word] for word in words if word in terms)
    weights = {term: count * idf[term] for term, count in counts.items()}
    length = math.hypot(*weights.values())
    return {term: weight / length for term, weight in weights.items()}


def check(texts, expected):
    """The largest difference between the written files' scores and the expected ones."""
    lines = (HERE / "assets/vocabulary.tsv").read_text("utf-8").removesuffix("\n").split("\n")
    terms = {line.split("\t")[0]: number for number, line in enumerate(lines)}
    idf = [float(line.split("\t")[1]) for line in lines]
    rows = [features(text, terms, idf) for text in texts]
    indices = np.zeros((len(rows), max(map(len, rows))), np.int64)
    weights = np.zeros(indices.shape, np.float32)
    for row, found in enumerate(rows):
        indices[row, : len(found)], weights[row, : len(found)] = list(found), list(found.values())
    session = onnxruntime.InferenceSession(HERE / "assets/model.onnx", providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(["score"], {"terms": indices, "weights": weights})[0] - expected).max())


def main():
    data = resources.files("profanity_check") / "data"
    vectorizer, model = joblib.load(data / "vectorizer.joblib"), joblib.load(data / "model.joblib")
    names = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.get)
    assert (vectorizer.token_pattern, vectorizer.ngram_range, vectorizer.norm) == (r"(?u)\b\w\w+\b", (1, 1), "l2")
    assert vectorizer.lowercase and not (vectorizer.sublinear_tf or vectorizer.binary or vectorizer.strip_accents)
    assert not vectorizer.get_stop_words() & set(names)
    score = lambda texts: model.predict_proba(vectorizer.transform(texts))[:, 1]
    (HERE / "assets").mkdir(exist_ok=True)
    (HERE / "assets/model.onnx").write_bytes(build_onnx(model).SerializeToString(deterministic=True))
    lines = [f"{name}\t{float(idf)!r}\n" for name, idf in zip(names, vectorizer.idf_, strict=True)]
    (HERE / "assets/vocabulary.tsv").write_bytes("".join(lines).encode())
    licence = next(f for f in metadata.files(PACKAGE) if f.name == "LICENSE")
    (HERE / "LICENSE").write_bytes(licence.read_binary())
    scores = score(GOLDEN)
    for manifest in sorted(HERE.glob("*/manifest.toml")):
        threshold = float(tomllib.loads(manifest.read_text("utf-8"))["parameters"]["threshold"])
        assert np.abs(scores - threshold).min() > 1e-3, "a golden label must not hang on rounding"
        answers = [{"label": "toxic" if s >= threshold else "clean", "score": round(float(s), 7)} for s in scores]
        lines = [json.dumps({"inputs": {"text": t}, "outputs": a}) + "\n" for t, a in zip(GOLDEN, answers)]
        manifest.with_name("golden.jsonl").write_bytes("".join(lines).encode())

    source = random.Random(0)
    drawn = [" ".join(source.choices(names, k=source.randint(1, 60))) for _ in range(500)]
    for what, texts in (("golden", GOLDEN), ("random", drawn)):
        difference = check(texts, score(texts))
        print(f"{what} texts: {len(texts)}, largest difference from scikit-learn: {difference:.2e}")
        assert difference < 1e-5


main()
