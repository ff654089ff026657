//! Operations with 8-bit inputs and outputs, as operations on numbers between conversions.
//!
//! ONNX has two ways to write quantised graphs. This makes the second one of the first one, so that
//! the rewrite has to know one only, and tract, which has a few operations of the first, can load
//! all of these.

use std::collections::HashMap;

use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;

const FLOAT: i32 = pb::tensor_proto::DataType::Float as i32;

/// An operation, and where its inputs are.
struct Pattern {
    quantised: &'static str,
    /// The operation on numbers.
    real: &'static str,
    /// Where the values of operands are, each followed by its scale and its zero point. If there are
    /// none here, all inputs after the scale and the zero point of the output are operands.
    operands: &'static [usize],
    /// Where the scale of the output is, followed by its zero point.
    output: usize,
    /// Where the 32-bit bias is, in units of the product of the operands' scales.
    bias: Option<usize>,
}

const PATTERNS: [Pattern; 11] = [
    Pattern::new("QLinearConv", "Conv", &[0, 3], 6).with_bias(8),
    Pattern::new("QLinearMatMul", "MatMul", &[0, 3], 6),
    Pattern::new("QGemm", "Gemm", &[0, 3], 7).with_bias(6),
    Pattern::new("QLinearAdd", "Add", &[0, 3], 6),
    Pattern::new("QLinearMul", "Mul", &[0, 3], 6),
    Pattern::new("QLinearGlobalAveragePool", "GlobalAveragePool", &[0], 3),
    Pattern::new("QLinearAveragePool", "AveragePool", &[0], 3),
    Pattern::new("QLinearConcat", "Concat", &[], 0),
    Pattern::new("QLinearSoftmax", "Softmax", &[0], 3),
    Pattern::new("QLinearSigmoid", "Sigmoid", &[0], 3),
    Pattern::new("QLinearLeakyRelu", "LeakyRelu", &[0], 3),
];

impl Pattern {
    const fn new(
        quantised: &'static str,
        real: &'static str,
        operands: &'static [usize],
        output: usize,
    ) -> Self {
        Self { quantised, real, operands, output, bias: None }
    }

    const fn with_bias(self, bias: usize) -> Self {
        Self { bias: Some(bias), ..self }
    }
}

/// Expand all operations with 8-bit inputs and outputs.
pub(in crate::tract) fn expand(graph: &mut pb::GraphProto) {
    let scales: HashMap<String, Vec<f32>> = graph
        .initializer
        .iter()
        .filter(|tensor| tensor.data_type == FLOAT)
        .map(|tensor| (tensor.name.clone(), floats(tensor)))
        .collect();
    for node in std::mem::take(&mut graph.node) {
        let pattern = PATTERNS.iter().find(|pattern| pattern.quantised == node.op_type);
        let expanded = pattern.and_then(|pattern| Expansion::new(&node, pattern, &scales));
        if let Some(Expansion { nodes, bias_scale }) = expanded {
            graph.node.extend(nodes);
            graph.initializer.extend(bias_scale);
        } else {
            graph.node.push(node);
        }
    }
}

struct Expansion {
    nodes: Vec<pb::NodeProto>,
    bias_scale: Option<pb::TensorProto>,
}

impl Expansion {
    /// `None` if the node is not as expected.
    fn new(
        node: &pb::NodeProto,
        pattern: &Pattern,
        scales: &HashMap<String, Vec<f32>>,
    ) -> Option<Self> {
        let attribute = |name: &str| node.attribute.iter().find(|it| it.name == name);
        if attribute("channels_last").is_some_and(|it| it.i != 0)
            || attribute("alpha").is_some_and(|it| pattern.bias.is_some() && it.f != 1.0)
        {
            return None;
        }
        let output = node.output.first()?;
        let input = |index: usize| node.input.get(index).filter(|name| !name.is_empty());
        // Weights have a scale for each output channel, which is their first axis, or column.
        let is_by_row = pattern.real == "Conv" || attribute("transB").is_some_and(|it| it.i != 0);
        let axis = if is_by_row { 0 } else { -1 };
        let (mut nodes, mut inputs, mut bias_scale) = (vec![], vec![], None);
        let all: Vec<usize> = (pattern.output + 2..node.input.len()).step_by(3).collect();
        let operands = if pattern.operands.is_empty() { &all } else { pattern.operands };
        for operand in operands {
            let name = format!("{output}.operand{operand}");
            let sources = [input(*operand)?, input(operand + 1)?, input(operand + 2)?];
            nodes.push(convert("DequantizeLinear", &sources, &name, axis));
            inputs.push(name);
        }
        if let Some(bias) = pattern.bias.and_then(input) {
            let [left, right] = [1, 4].map(|index| scales.get(input(index)?));
            let ([left], right) = (&left?[..], right?) else { return None };
            let product: Vec<f32> = right.iter().map(|right| left * right).collect();
            let (scale, name) = (format!("{output}.bias_scale"), format!("{output}.bias"));
            nodes.push(convert("DequantizeLinear", &[bias, &scale], &name, 0));
            bias_scale = Some(vector(&scale, &product));
            inputs.push(name);
        }
        let quantised = [input(pattern.output), input(pattern.output + 1)];
        let real = match quantised {
            [Some(_), Some(_)] => format!("{output}.real"),
            _ => output.clone(),
        };
        nodes.push(pb::NodeProto {
            name: real.clone(),
            op_type: pattern.real.to_owned(),
            input: inputs,
            output: vec![real.clone()],
            attribute: node.attribute.clone(),
            ..Default::default()
        });
        if let [Some(scale), Some(zero_point)] = quantised {
            nodes.push(convert("QuantizeLinear", &[&real, scale, zero_point], output, 0));
        }
        Some(Self { nodes, bias_scale })
    }
}

fn convert(operation: &str, inputs: &[&String], output: &str, axis: i64) -> pb::NodeProto {
    let axis = pb::AttributeProto {
        name: "axis".to_owned(),
        r#type: AttributeType::Int.into(),
        i: axis,
        ..Default::default()
    };
    pb::NodeProto {
        name: output.to_owned(),
        op_type: operation.to_owned(),
        input: inputs.iter().map(|input| (*input).clone()).collect(),
        output: vec![output.to_owned()],
        attribute: vec![axis],
        ..Default::default()
    }
}

fn floats(tensor: &pb::TensorProto) -> Vec<f32> {
    let raw = tensor.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    raw.chain(tensor.float_data.iter().copied()).collect()
}

/// A scalar if there is one element.
fn vector(name: &str, elements: &[f32]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        data_type: FLOAT,
        dims: if let [_] = elements { vec![] } else { vec![elements.len() as i64] },
        float_data: elements.to_vec(),
        ..Default::default()
    }
}
