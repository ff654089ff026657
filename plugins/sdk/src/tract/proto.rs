//! Changes to ONNX files that tract would not load as they are.

mod build;
mod columns;
mod half;
mod quantised;
mod scaler;

use tract_onnx::pb;

pub(super) use half::widen;

const INT32: i64 = pb::tensor_proto::DataType::Int32 as i64;
const INT64: i64 = pb::tensor_proto::DataType::Int64 as i64;

/// Express operations that tract lacks by others.
pub(super) fn expand(graph: &mut pb::GraphProto) {
    quantised::expand(graph);
    scaler::expand(graph);
    columns::expand(graph);
}

/// Let sizes that a graph casts to 32-bit integers be 64-bit integers, which tract computes with
/// even if they are named dimensions. Whether there are any.
pub(super) fn keep_sizes_symbolic(graph: &mut pb::GraphProto) -> bool {
    let shapes: Vec<String> = graph
        .node
        .iter()
        .filter(|node| node.op_type == "Shape")
        .flat_map(|node| node.output.iter().cloned())
        .collect();
    let casts = graph.node.iter_mut().filter(|node| {
        node.op_type == "Cast" && node.input.iter().any(|input| shapes.contains(input))
    });
    let targets = casts.flat_map(|node| &mut node.attribute);
    let targets = targets.filter(|attribute| attribute.name == "to" && attribute.i == INT32);
    targets.map(|attribute| attribute.i = INT64).count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(operation: &str, input: &str, output: &str) -> pb::NodeProto {
        let to = pb::AttributeProto { name: "to".to_owned(), i: INT32, ..Default::default() };
        pb::NodeProto {
            op_type: operation.to_owned(),
            input: vec![input.to_owned()],
            output: vec![output.to_owned()],
            attribute: if operation == "Cast" { vec![to] } else { vec![] },
            ..Default::default()
        }
    }

    #[test]
    fn only_casts_of_shapes_are_changed() {
        let nodes = [("Shape", "x", "s"), ("Cast", "s", "t"), ("Cast", "x", "y")];
        let nodes = nodes.map(|(operation, input, output)| node(operation, input, output));
        let mut graph = pb::GraphProto { node: nodes.into(), ..Default::default() };
        assert!(keep_sizes_symbolic(&mut graph));
        let targets: Vec<i64> =
            graph.node.iter().flat_map(|node| &node.attribute).map(|to| to.i).collect();
        assert_eq!(targets, [INT64, INT32]);
        assert!(!keep_sizes_symbolic(&mut graph));
    }
}
