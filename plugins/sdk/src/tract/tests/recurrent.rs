//! Recurrent layers, whose loop bodies are rewritten too.

use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::scan::Scan;

use super::{Graph, operations};

const STEPS: usize = 4;
const INPUTS: usize = 12;
const HIDDEN: usize = 10;

#[test]
fn products_in_the_bodies_of_loops_are_ours() {
    for (layer, gates) in [("LSTM", 4), ("GRU", 3)] {
        let (graph, output) = recurrent(layer, gates);
        let mut rewritten = graph.model.clone();
        rewritten.select_output_outlets(&[output]).unwrap();
        super::rewrite(&mut rewritten).unwrap();
        let scans = rewritten.nodes().iter().filter_map(|node| node.op_as::<Scan>());
        let bodies: Vec<_> = scans.map(|scan| operations(&scan.body)).collect();
        assert_eq!(bodies.len(), 1, "{layer}");
        assert!(bodies[0].contains(&"MatrixProduct".to_owned()), "{layer}: {bodies:?}");
        assert!(!bodies[0].contains(&"EinSum".to_owned()), "{layer}: {bodies:?}");
        graph.compare(&[output]);
    }
}

/// A layer with random weights, and its output.
fn recurrent(layer: &str, gates: usize) -> (Graph, OutletId) {
    let mut graph = Graph::new();
    let mut initializer = |name: &str, shape: &[usize]| {
        let tensor = graph.random.tensor(shape);
        let view = tensor.try_as_plain_ram().unwrap();
        pb::TensorProto {
            name: name.to_owned(),
            data_type: pb::tensor_proto::DataType::Float.into(),
            dims: shape.iter().map(|size| i64::try_from(*size).unwrap()).collect(),
            float_data: view.as_slice::<f32>().unwrap().to_vec(),
            ..Default::default()
        }
    };
    let weights = [
        initializer("w", &[1, gates * HIDDEN, INPUTS]),
        initializer("r", &[1, gates * HIDDEN, HIDDEN]),
        initializer("b", &[1, 2 * gates * HIDDEN]),
    ];
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let node = pb::NodeProto {
        input: names(&["x", "w", "r", "b"]),
        output: names(&["y"]),
        name: "layer".to_owned(),
        op_type: layer.to_owned(),
        attribute: vec![pb::AttributeProto {
            name: "hidden_size".to_owned(),
            r#type: pb::attribute_proto::AttributeType::Int.into(),
            i: i64::try_from(HIDDEN).unwrap(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let value = |name: &str| pb::ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
                elem_type: pb::tensor_proto::DataType::Float.into(),
                shape: None,
            })),
            ..Default::default()
        }),
        ..Default::default()
    };
    let graph_proto = pb::GraphProto {
        name: "recurrent".to_owned(),
        node: vec![node],
        initializer: weights.into(),
        input: vec![value("x")],
        output: vec![value("y")],
        ..Default::default()
    };
    let proto = pb::ModelProto {
        ir_version: 8,
        opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: 14 }],
        graph: Some(graph_proto),
        ..Default::default()
    };
    let mut model = tract_onnx::onnx().parse(&proto, None).unwrap().model;
    let shape = [STEPS, 2, INPUTS];
    model.set_input_fact(0, f32::fact(shape).into()).unwrap();
    graph.model = model.into_typed().unwrap();
    graph.shapes.push(shape.to_vec());
    let output = graph.model.output_outlets().unwrap()[0];
    (graph, output)
}
