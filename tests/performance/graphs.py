"""ONNX graphs of published models, assembled from their weights."""

import math

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Collects nodes and initializers."""

    def __init__(self):
        self.nodes, self.initializers = [], []

    def weight(self, name, array):
        self.initializers.append(numpy_helper.from_array(numpy.ascontiguousarray(array), name))
        return name

    def node(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def model(self, name, inputs, outputs, opset):
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def _value(name, datatype, shape):
    return helper.make_tensor_value_info(name, datatype, shape)


# EfficientNet-Lite0: repetitions, kernel, stride, expansion, channels.
_BLOCKS = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


def efficientnet_lite0(weights):
    """The image classifier for 224 x 224 pixels; batch normalisation is folded into convolutions."""
    graph, size = Graph(), 224

    def convolution(source, convolution_name, norm_name, stride, clipped):
        nonlocal size
        kernel = weights[f"{convolution_name}.weight"].astype(numpy.float64)
        norm = {
            part: weights[f"{norm_name}.{part}"].astype(numpy.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        scale = norm["weight"] / numpy.sqrt(norm["running_var"] + 1e-3)
        bias = norm["bias"] - norm["running_mean"] * scale
        extent = kernel.shape[2]
        outputs = math.ceil(size / stride)
        padding = max((outputs - 1) * stride + extent - size, 0)
        before, after = padding // 2, padding - padding // 2
        size = outputs
        names = [
            graph.weight(f"{convolution_name}.weight", (kernel * scale[:, None, None, None]).astype("f4")),
            graph.weight(f"{convolution_name}.bias", bias.astype("f4")),
        ]
        depthwise = kernel.shape[1] == 1
        result = graph.node(
            "Conv",
            [source, *names],
            convolution_name,
            kernel_shape=[extent, extent],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=kernel.shape[0] if depthwise else 1,
        )
        if clipped:
            result = graph.node("Clip", [result, "zero", "six"], f"{convolution_name}.clip")
        return result

    graph.weight("zero", numpy.float32(0))
    graph.weight("six", numpy.float32(6))
    value = convolution("image", "_conv_stem", "_bn0", 2, True)
    index, channels = 0, 32
    for repetitions, _, stride, expansion, outputs in _BLOCKS:
        for repetition in range(repetitions):
            name = f"_blocks.{index}"
            source, step = value, stride if repetition == 0 else 1
            if expansion != 1:
                value = convolution(value, f"{name}._expand_conv", f"{name}._bn0", 1, True)
            value = convolution(value, f"{name}._depthwise_conv", f"{name}._bn1", step, True)
            value = convolution(value, f"{name}._project_conv", f"{name}._bn2", 1, False)
            if step == 1 and channels == outputs:
                value = graph.node("Add", [value, source], f"{name}.add")
            index, channels = index + 1, outputs
    value = convolution(value, "_conv_head", "_bn1", 1, True)
    value = graph.node("GlobalAveragePool", [value], "pooled")
    value = graph.node("Flatten", [value], "flat", axis=1)
    names = [graph.weight("_fc.weight", weights["_fc.weight"]), graph.weight("_fc.bias", weights["_fc.bias"])]
    graph.node("Gemm", [value, *names], "logits", transB=1)
    inputs = [_value("image", TensorProto.FLOAT, ["batch", 3, 224, 224])]
    outputs = [_value("logits", TensorProto.FLOAT, ["batch", 1000])]
    return graph.model("efficientnet-lite0", inputs, outputs, 17)


def minilm(weights, config):
    """The sentence encoder: a BERT of 6 layers, which returns its last hidden state."""
    graph = Graph()
    width, heads = config["hidden_size"], config["num_attention_heads"]
    epsilon = config["layer_norm_eps"]
    constants = {
        "one": numpy.float32(1),
        "half": numpy.float32(0.5),
        "root_two": numpy.float32(math.sqrt(2)),
        "root_width": numpy.float32(math.sqrt(width // heads)),
        "lowest": numpy.finfo(numpy.float32).min,
        "axes_mask": numpy.array([1, 2]),
        "index_one": numpy.array([1]),
        "index_zero": numpy.array([0]),
        "shape_heads": numpy.array([0, 0, heads, width // heads]),
        "shape_joined": numpy.array([0, 0, width]),
        "position_ids": numpy.arange(config["max_position_embeddings"])[None],
    }
    for name, value in constants.items():
        graph.weight(name, value)

    def table(name):
        return graph.weight(name, weights[f"embeddings.{name}.weight"])

    def linear(source, name):
        weight = graph.weight(f"{name}.weight", weights[f"{name}.weight"].T)
        bias = graph.weight(f"{name}.bias", weights[f"{name}.bias"])
        product = graph.node("MatMul", [source, weight], f"{name}.product")
        return graph.node("Add", [product, bias], f"{name}.sum")

    def normalised(source, name):
        names = [graph.weight(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return graph.node("LayerNormalization", [source, *names], f"{name}.out", axis=-1, epsilon=epsilon)

    def split(source, name, permutation):
        parts = graph.node("Reshape", [source, "shape_heads"], f"{name}.heads")
        return graph.node("Transpose", [parts], f"{name}.moved", perm=permutation)

    shape = graph.node("Shape", ["input_ids"], "shape")
    length = graph.node("Gather", [shape, "index_one"], "length")
    positions = graph.node("Slice", ["position_ids", "index_zero", length, "index_one"], "positions")
    words = graph.node("Gather", [table("word_embeddings"), "input_ids"], "words")
    types = graph.node("Gather", [table("token_type_embeddings"), "token_type_ids"], "types")
    places = graph.node("Gather", [table("position_embeddings"), positions], "places")
    value = graph.node("Add", [words, types], "words_types")
    value = graph.node("Add", [value, places], "embedded")
    value = normalised(value, "embeddings.LayerNorm")

    mask = graph.node("Unsqueeze", ["attention_mask", "axes_mask"], "mask_wide")
    mask = graph.node("Cast", [mask], "mask_float", to=TensorProto.FLOAT)
    mask = graph.node("Sub", ["one", mask], "mask_inverse")
    mask = graph.node("Mul", [mask, "lowest"], "mask")

    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        attention = f"{name}.attention.self"
        query = split(linear(value, f"{attention}.query"), f"{attention}.query", [0, 2, 1, 3])
        key = split(linear(value, f"{attention}.key"), f"{attention}.key", [0, 2, 3, 1])
        content = split(linear(value, f"{attention}.value"), f"{attention}.value", [0, 2, 1, 3])
        scores = graph.node("MatMul", [query, key], f"{attention}.scores")
        scores = graph.node("Div", [scores, "root_width"], f"{attention}.scaled")
        scores = graph.node("Add", [scores, mask], f"{attention}.masked")
        scores = graph.node("Softmax", [scores], f"{attention}.softmax", axis=-1)
        context = graph.node("MatMul", [scores, content], f"{attention}.context")
        context = graph.node("Transpose", [context], f"{attention}.back", perm=[0, 2, 1, 3])
        context = graph.node("Reshape", [context, "shape_joined"], f"{attention}.joined")
        output = linear(context, f"{name}.attention.output.dense")
        output = graph.node("Add", [output, value], f"{name}.attention.residual")
        value = normalised(output, f"{name}.attention.output.LayerNorm")
        inner = linear(value, f"{name}.intermediate.dense")
        error = graph.node("Div", [inner, "root_two"], f"{name}.gelu.divided")
        error = graph.node("Erf", [error], f"{name}.gelu.erf")
        error = graph.node("Add", [error, "one"], f"{name}.gelu.sum")
        inner = graph.node("Mul", [inner, error], f"{name}.gelu.product")
        inner = graph.node("Mul", [inner, "half"], f"{name}.gelu")
        output = linear(inner, f"{name}.output.dense")
        output = graph.node("Add", [output, value], f"{name}.residual")
        value = normalised(output, f"{name}.output.LayerNorm")
    graph.nodes[-1].output[0] = "last_hidden_state"

    tokens = ["batch", "sequence"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [_value(name, TensorProto.INT64, tokens) for name in names]
    outputs = [_value("last_hidden_state", TensorProto.FLOAT, [*tokens, width])]
    return graph.model("minilm", inputs, outputs, 17)
