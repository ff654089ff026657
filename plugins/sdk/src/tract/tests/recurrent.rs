//! Recurrent layers, whose loop bodies are rewritten too.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::scan::Scan;

use super::file::{File, Type, int};
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
    let mut file = File::new(14).input("x", Type::Float).output("y", Type::Float);
    for (name, shape) in [
        ("w", &[1, gates * HIDDEN, INPUTS][..]),
        ("r", &[1, gates * HIDDEN, HIDDEN]),
        ("b", &[1, 2 * gates * HIDDEN]),
    ] {
        let tensor = graph.random.tensor(shape);
        file = file.floats(name, shape, tensor.try_as_plain_ram().unwrap().as_slice().unwrap());
    }
    let hidden = int("hidden_size", i64::try_from(HIDDEN).unwrap());
    let file = file.node(layer, &["x", "w", "r", "b"], &["y"], [hidden]);
    let mut model = tract_onnx::onnx().parse(&file.model(), None).unwrap().model;
    let shape = [STEPS, 2, INPUTS];
    model.set_input_fact(0, f32::fact(shape).into()).unwrap();
    graph.model = model.into_typed().unwrap();
    graph.shapes.push(shape.to_vec());
    let output = graph.model.output_outlets().unwrap()[0];
    (graph, output)
}
