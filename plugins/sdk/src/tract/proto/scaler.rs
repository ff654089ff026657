//! The scaling of columns, `(x - offset) * scale`, which tract does not have as one operation.

use tract_onnx::pb;

use super::build::{self, FLOAT, constant, int};

/// Expand all scalers into a cast, a difference and a product. One whose attributes are missing is left
/// as it is.
pub(in crate::tract) fn expand(graph: &mut pb::GraphProto) {
    for node in std::mem::take(&mut graph.node) {
        if node.op_type != "Scaler" {
            graph.node.push(node);
            continue;
        }
        let floats = |name: &str| {
            let attribute = node.attribute.iter().find(|attribute| attribute.name == name);
            attribute.map(|attribute| attribute.floats.clone()).filter(|floats| !floats.is_empty())
        };
        let (Some(offset), Some(scale)) = (floats("offset"), floats("scale")) else {
            graph.node.push(node);
            continue;
        };
        let ([input], [output]) = (&node.input[..], &node.output[..]) else {
            graph.node.push(node);
            continue;
        };
        let [numbers, offset_name, shifted, scale_name] =
            ["numbers", "offset", "shifted", "scale"].map(|what| format!("{output}.{what}"));
        for (name, numbers) in [(&offset_name, &offset), (&scale_name, &scale)] {
            graph.initializer.push(constant(name, FLOAT, numbers, f32::to_le_bytes));
        }
        graph.node.extend([
            build::node("Cast", &[input], &numbers, vec![int("to", FLOAT.into())]),
            build::node("Sub", &[&numbers, &offset_name], &shifted, vec![]),
            build::node("Mul", &[&shifted, &scale_name], output, vec![]),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(name: &str, floats: &[f32]) -> pb::AttributeProto {
        pb::AttributeProto { name: name.to_owned(), floats: floats.to_vec(), ..Default::default() }
    }

    fn scaler(attributes: Vec<pb::AttributeProto>) -> pb::GraphProto {
        let node = pb::NodeProto {
            op_type: "Scaler".to_owned(),
            input: vec!["x".to_owned()],
            output: vec!["y".to_owned()],
            attribute: attributes,
            ..Default::default()
        };
        pb::GraphProto { node: vec![node], ..Default::default() }
    }

    #[test]
    fn scaler_is_a_difference_and_a_product() {
        let mut graph = scaler(vec![floats("offset", &[1.0, 2.0]), floats("scale", &[0.5])]);
        expand(&mut graph);
        let operations: Vec<_> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(operations, ["Cast", "Sub", "Mul"]);
        assert_eq!(graph.node[2].output, ["y"]);
        assert_eq!(graph.initializer[0].raw_data[4..], 2_f32.to_le_bytes());
        assert_eq!(graph.initializer[0].dims, [2]);
    }

    #[test]
    fn scaler_without_its_attributes_is_left() {
        let mut graph = scaler(vec![floats("offset", &[1.0])]);
        expand(&mut graph);
        assert_eq!(graph.node[0].op_type, "Scaler");
        assert!(graph.initializer.is_empty());
    }
}
