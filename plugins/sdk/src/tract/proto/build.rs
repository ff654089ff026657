//! Parts of graphs.

use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;

pub(super) const FLOAT: i32 = pb::tensor_proto::DataType::Float as i32;
pub(super) const INT64: i32 = pb::tensor_proto::DataType::Int64 as i32;

/// A list of numbers.
pub(super) fn constant<T: Copy, const N: usize>(
    name: &str,
    data_type: i32,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        data_type,
        dims: vec![values.len() as i64],
        raw_data: values.iter().flat_map(|value| bytes(*value)).collect(),
        ..Default::default()
    }
}

/// A node with one output, whose name it has.
pub(super) fn node(
    operation: &str,
    inputs: &[&String],
    output: &str,
    attribute: Vec<pb::AttributeProto>,
) -> pb::NodeProto {
    pb::NodeProto {
        op_type: operation.to_owned(),
        name: output.to_owned(),
        input: inputs.iter().copied().cloned().collect(),
        output: vec![output.to_owned()],
        attribute,
        ..Default::default()
    }
}

pub(super) fn int(name: &str, i: i64) -> pb::AttributeProto {
    let r#type = AttributeType::Int.into();
    pb::AttributeProto { name: name.to_owned(), i, r#type, ..Default::default() }
}

pub(super) fn ints(name: &str, ints: &[i64]) -> pb::AttributeProto {
    let r#type = AttributeType::Ints.into();
    pb::AttributeProto { name: name.to_owned(), ints: ints.to_vec(), r#type, ..Default::default() }
}

pub(super) fn attribute<'a>(node: &'a pb::NodeProto, name: &str) -> Option<&'a pb::AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}
