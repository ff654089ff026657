//! ONNX files under construction.

use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;
pub(super) use tract_onnx::pb::tensor_proto::DataType as Type;

pub(super) struct File {
    graph: pb::GraphProto,
    opset: i64,
}

impl File {
    /// A file without nodes.
    pub(super) fn new(opset: i64) -> Self {
        let graph = pb::GraphProto { name: "graph".to_owned(), ..Default::default() };
        Self { graph, opset }
    }

    pub(super) fn input(mut self, name: &str, elements: Type) -> Self {
        self.graph.input.push(value(name, elements));
        self
    }

    pub(super) fn output(mut self, name: &str, elements: Type) -> Self {
        self.graph.output.push(value(name, elements));
        self
    }

    /// A constant of type f32.
    pub(super) fn floats(self, name: &str, shape: &[usize], elements: &[f32]) -> Self {
        let bytes = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
        self.constant(name, Type::Float, shape, bytes)
    }

    /// A constant of any type, little-endian.
    pub(super) fn constant(
        mut self,
        name: &str,
        elements: Type,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> Self {
        self.graph.initializer.push(pb::TensorProto {
            name: name.to_owned(),
            data_type: elements.into(),
            dims: shape.iter().map(|size| i64::try_from(*size).unwrap()).collect(),
            raw_data: bytes,
            ..Default::default()
        });
        self
    }

    pub(super) fn node<const N: usize>(
        mut self,
        operation: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: [pb::AttributeProto; N],
    ) -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        self.graph.node.push(pb::NodeProto {
            name: format!("node{}", self.graph.node.len()),
            op_type: operation.to_owned(),
            input: names(inputs),
            output: names(outputs),
            attribute: attributes.into(),
            ..Default::default()
        });
        self
    }

    pub(super) fn model(self) -> pb::ModelProto {
        let opset = pb::OperatorSetIdProto { domain: String::new(), version: self.opset };
        pb::ModelProto {
            ir_version: 8,
            opset_import: vec![opset],
            graph: Some(self.graph),
            ..Default::default()
        }
    }
}

fn value(name: &str, elements: Type) -> pb::ValueInfoProto {
    let tensor = pb::type_proto::Tensor { elem_type: elements.into(), shape: None };
    let tensor = pb::TypeProto {
        value: Some(pb::type_proto::Value::TensorType(tensor)),
        ..Default::default()
    };
    pb::ValueInfoProto { name: name.to_owned(), r#type: Some(tensor), ..Default::default() }
}

fn attribute(name: &str, kind: AttributeType) -> pb::AttributeProto {
    pb::AttributeProto { name: name.to_owned(), r#type: kind.into(), ..Default::default() }
}

pub(super) fn int(name: &str, i: i64) -> pb::AttributeProto {
    pb::AttributeProto { i, ..attribute(name, AttributeType::Int) }
}

pub(super) fn ints(name: &str, ints: &[i64]) -> pb::AttributeProto {
    pb::AttributeProto { ints: ints.to_vec(), ..attribute(name, AttributeType::Ints) }
}

pub(super) fn floats(name: &str, floats: &[f32]) -> pb::AttributeProto {
    pb::AttributeProto { floats: floats.to_vec(), ..attribute(name, AttributeType::Floats) }
}

pub(super) fn strings(name: &str, strings: &[&str]) -> pb::AttributeProto {
    let strings = strings.iter().map(|string| string.as_bytes().to_vec()).collect();
    pb::AttributeProto { strings, ..attribute(name, AttributeType::Strings) }
}
