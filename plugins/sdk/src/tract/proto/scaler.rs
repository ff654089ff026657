//! The scaling of columns, `(x - offset) * scale`, which tract does not have as one operation.

use tract_onnx::pb;

const FLOAT: i32 = pb::tensor_proto::DataType::Float as i32;

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
        graph.initializer.extend([constant(&offset_name, offset), constant(&scale_name, scale)]);
        let to = pb::AttributeProto {
            name: "to".to_owned(),
            i: FLOAT.into(),
            r#type: pb::attribute_proto::AttributeType::Int.into(),
            ..Default::default()
        };
        graph.node.extend([
            step("Cast", [input], &numbers, vec![to]),
            step("Sub", [&numbers, &offset_name], &shifted, vec![]),
            step("Mul", [&shifted, &scale_name], output, vec![]),
        ]);
    }
}

fn constant(name: &str, values: Vec<f32>) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        data_type: FLOAT,
        dims: vec![values.len() as i64],
        float_data: values,
        ..Default::default()
    }
}

fn step<const N: usize>(
    operation: &str,
    inputs: [&String; N],
    output: &str,
    attribute: Vec<pb::AttributeProto>,
) -> pb::NodeProto {
    pb::NodeProto {
        op_type: operation.to_owned(),
        name: output.to_owned(),
        input: inputs.map(Clone::clone).to_vec(),
        output: vec![output.to_owned()],
        attribute,
        ..Default::default()
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
        assert_eq!(graph.initializer[0].float_data, [1.0, 2.0]);
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
