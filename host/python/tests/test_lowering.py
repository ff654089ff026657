"""Operators that guests lack are expressed by others that compute the same as onnxruntime does."""

from __future__ import annotations

from typing import Any

import numpy
import onnx
import pytest
from onnx import TensorProto, helper

from guesthouse_pack import lowering
from guesthouse_pack.runtimes import run_onnxruntime

pytest.importorskip("onnxruntime")


def model(node: onnx.NodeProto, kind: int, output: int, width: int, opset: int = 17) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", kind, ["rows", width])]
    outputs = [helper.make_tensor_value_info("y", output, None)]
    graph = helper.make_graph([node], "test", inputs, outputs)
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=versions, ir_version=8)


def ml(operation: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operation, ["x"], ["y"], domain="ai.onnx.ml", **attributes)


NAN = float("nan")


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("node", "rows"),
    [
        (ml("OneHotEncoder", cats_int64s=[3, 5, 9], zeros=1), numpy.array([[3.0], [5], [7], [9]], "f4")),
        (ml("OneHotEncoder", cats_int64s=[3, 5], zeros=1), numpy.array([[3], [5], [4]], "i8")),
        (
            ml("Imputer", imputed_value_floats=[1.5, 2.5], replaced_value_float=NAN),
            numpy.array([[NAN, 1], [2, NAN], [3, 4]], "f4"),
        ),
        (
            ml("Imputer", imputed_value_floats=[9.0], replaced_value_float=-1.0),
            numpy.array([[-1, 1], [2, -1]], "f4"),
        ),
        (
            ml("Imputer", imputed_value_int64s=[7, 8], replaced_value_int64=-1),
            numpy.array([[-1, 1], [2, -1]], "i8"),
        ),
        (
            ml("LabelEncoder", keys_int64s=[1, 0, 2], values_int64s=[5, 9, 7]),
            numpy.array([[0], [1], [2], [1]], "i8"),
        ),
        (ml("Binarizer", threshold=0.5), numpy.array([[0.5, 0.6], [0, 1]], "f4")),
    ],
)
def test_lowered_operator_computes_the_same(node: onnx.NodeProto, rows: Any, opset: int) -> None:
    kind = TensorProto.INT64 if rows.dtype.kind == "i" else TensorProto.FLOAT
    output = TensorProto.INT64 if "value" in str(node) and "int64s" in str(node) else TensorProto.FLOAT
    original = model(node, kind, output, rows.shape[1], opset)
    expected = run_onnxruntime(original, {"x": rows})["y"]
    lowering.lower(original)
    assert {one.domain for one in original.graph.node} == {""}
    found = run_onnxruntime(original, {"x": rows})["y"]
    assert found.dtype == expected.dtype
    numpy.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_features_are_extracted_by_index() -> None:
    node = helper.make_node("ArrayFeatureExtractor", ["x", "places"], ["y"], domain="ai.onnx.ml")
    original = model(node, TensorProto.FLOAT, TensorProto.FLOAT, 3)
    original.graph.initializer.append(helper.make_tensor("places", TensorProto.INT64, [1, 2], [2, 0]))
    rows = numpy.arange(6, dtype="f4").reshape(2, 3)
    expected = run_onnxruntime(original, {"x": rows})["y"]
    lowering.lower(original)
    numpy.testing.assert_array_equal(run_onnxruntime(original, {"x": rows})["y"], expected)
    assert expected.tolist() == [[2, 0], [5, 3]]


def test_unknown_operator_stays() -> None:
    original = model(ml("OneHotEncoder", cats_strings=["a"], zeros=1), TensorProto.STRING, TensorProto.FLOAT, 1)
    lowering.lower(original)
    assert [node.op_type for node in original.graph.node] == ["OneHotEncoder"]
