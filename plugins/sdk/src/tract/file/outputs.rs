//! The choice of a graph's outputs.

use std::collections::HashSet;

use tract_onnx::pb::{GraphProto, ValueInfoProto};

/// Let these values be the outputs, in this order, and remove the nodes that they do not depend on.
pub(super) fn keep(graph: &mut GraphProto, names: &[String]) -> Result<(), String> {
    let computed: HashSet<&String> = graph.node.iter().flat_map(|node| &node.output).collect();
    let mut outputs = Vec::new();
    for name in names {
        let known = graph.output.iter().find(|output| output.name == *name).cloned();
        outputs.push(match known {
            Some(output) => output,
            None if computed.contains(name) => {
                ValueInfoProto { name: name.clone(), ..Default::default() }
            }
            None => {
                let others: Vec<&str> = graph.output.iter().map(|value| &*value.name).collect();
                return Err(format!(
                    "the graph has no value {name:?}; its outputs are {}",
                    others.join(", ")
                ));
            }
        });
    }
    graph.output = outputs;
    prune(graph);
    Ok(())
}

/// Remove the nodes that no output depends on. The order of nodes is one in which they can run.
fn prune(graph: &mut GraphProto) {
    let mut needed: HashSet<String> = graph.output.iter().map(|value| value.name.clone()).collect();
    let mut kept = Vec::new();
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        if node.output.iter().any(|output| needed.contains(output)) {
            needed.extend(node.input.iter().cloned());
            let attributes = node.attribute.iter();
            let bodies =
                attributes.flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
            bodies.for_each(|body| add_names(body, &mut needed));
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
}

/// Add everything that a body may take from the graph around it.
fn add_names(body: &GraphProto, needed: &mut HashSet<String>) {
    needed.extend(body.output.iter().map(|value| value.name.clone()));
    for node in &body.node {
        needed.extend(node.input.iter().cloned());
        for attribute in &node.attribute {
            let bodies = attribute.g.iter().chain(&attribute.graphs);
            bodies.for_each(|body| add_names(body, needed));
        }
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::NodeProto;

    use super::*;

    fn graph() -> GraphProto {
        let node = |operation: &str, input: &str, output: &str| NodeProto {
            op_type: operation.to_owned(),
            input: vec![input.to_owned()],
            output: vec![output.to_owned()],
            ..Default::default()
        };
        let output = |name: &str| ValueInfoProto { name: name.to_owned(), ..Default::default() };
        GraphProto {
            node: vec![node("A", "x", "a"), node("B", "a", "b"), node("ZipMap", "a", "maps")],
            output: vec![output("b"), output("maps")],
            ..Default::default()
        }
    }

    #[test]
    fn nodes_that_no_output_depends_on_are_removed() {
        let mut graph = graph();
        keep(&mut graph, &["a".to_owned()]).unwrap();
        let operations: Vec<_> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(operations, ["A"]);
        assert_eq!(graph.output[0].name, "a");
    }

    #[test]
    fn unknown_outputs_are_rejected_with_the_known_ones() {
        let error = keep(&mut graph(), &["c".to_owned()]).unwrap_err();
        assert!(error.contains("\"c\"; its outputs are b, maps"), "{error}");
    }
}
