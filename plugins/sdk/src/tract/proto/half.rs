//! Half precision: float16, and bfloat16, which tract cannot read.
//!
//! The graph computes in single precision instead, from the same weights. Inputs and outputs of
//! type float16 keep their type; those of type bfloat16 become single precision.

use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::prelude::f16;

const FLOAT: i32 = pb::tensor_proto::DataType::Float as i32;
const FLOAT16: i32 = pb::tensor_proto::DataType::Float16 as i32;
const BFLOAT16: i32 = pb::tensor_proto::DataType::Bfloat16 as i32;

/// Attributes that name a type.
const TYPE_ATTRIBUTES: [&str; 4] = ["to", "dtype", "output_dtype", "stash_type"];

/// Let a graph compute in single precision instead of half precision.
pub(in crate::tract) fn widen(graph: &mut pb::GraphProto) {
    widen_body(graph);
    let mut casts = Vec::new();
    for input in graph.input.iter_mut().filter(|input| tensor_type(input) == Some(FLOAT16)) {
        let single = input.name.clone();
        input.name.push_str(".half");
        casts.push(cast(&input.name, &single, FLOAT));
    }
    casts.append(&mut graph.node);
    for output in graph.output.iter_mut().filter(|output| tensor_type(output) == Some(FLOAT16)) {
        let single = output.name.clone();
        output.name.push_str(".half");
        casts.push(cast(&single, &output.name, FLOAT16));
    }
    graph.node = casts;
    set_type(graph.input.iter_mut().chain(&mut graph.output), BFLOAT16);
}

/// Widen all but the inputs and outputs.
fn widen_body(graph: &mut pb::GraphProto) {
    graph.initializer.iter_mut().for_each(widen_tensor);
    for half in [FLOAT16, BFLOAT16] {
        set_type(&mut graph.value_info, half);
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        if TYPE_ATTRIBUTES.contains(&&*attribute.name)
            && [FLOAT16, BFLOAT16].iter().any(|half| attribute.i == i64::from(*half))
        {
            attribute.i = FLOAT.into();
        }
        attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(widen_tensor);
        for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            widen_body(body);
            for half in [FLOAT16, BFLOAT16] {
                set_type(body.input.iter_mut().chain(&mut body.output), half);
            }
        }
    }
}

fn widen_tensor(tensor: &mut pb::TensorProto) {
    let widen = match tensor.data_type {
        FLOAT16 => |bits| f16::from_bits(bits).to_f32(),
        BFLOAT16 => |bits| f32::from_bits(u32::from(bits) << 16),
        _ => return,
    };
    if tensor.data_location == Some(DataLocation::External.into()) {
        return;
    }
    let raw = tensor.raw_data.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "16 bits are used")]
    let listed = tensor.int32_data.iter().map(|bits| *bits as u16);
    tensor.raw_data = raw.chain(listed).flat_map(|bits| widen(bits).to_le_bytes()).collect();
    tensor.int32_data.clear();
    tensor.data_type = FLOAT;
}

fn tensor_type(value: &pb::ValueInfoProto) -> Option<i32> {
    match value.r#type.as_ref()?.value.as_ref()? {
        pb::type_proto::Value::TensorType(tensor) => Some(tensor.elem_type),
    }
}

/// Give the values of this type single precision.
fn set_type<'a>(values: impl IntoIterator<Item = &'a mut pb::ValueInfoProto>, half: i32) {
    for value in values.into_iter().filter_map(|value| value.r#type.as_mut()?.value.as_mut()) {
        let pb::type_proto::Value::TensorType(tensor) = value;
        if tensor.elem_type == half {
            tensor.elem_type = FLOAT;
        }
    }
}

fn cast(from: &str, to: &str, data_type: i32) -> pb::NodeProto {
    let attribute = pb::AttributeProto {
        name: "to".to_owned(),
        r#type: AttributeType::Int.into(),
        i: data_type.into(),
        ..Default::default()
    };
    pb::NodeProto {
        name: format!("{to}.cast"),
        op_type: "Cast".to_owned(),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        attribute: vec![attribute],
        ..Default::default()
    }
}
