//! Operations of `ai.onnx.ml` on columns that others can express: missing values, thresholds, choices
//! of columns, and maps from classes to probabilities, of which the probabilities remain.

use tract_onnx::pb;

use super::build::{FLOAT, INT64, attribute, constant, int, ints, node};

/// Expand all of them. One whose attributes are missing is left as it is.
pub(in crate::tract) fn expand(graph: &mut pb::GraphProto) {
    for old in std::mem::take(&mut graph.node) {
        let is_expanded = match &*old.op_type {
            "ZipMap" => zip_map(graph, &old),
            "Imputer" => imputer(graph, &old),
            "Binarizer" => binarizer(graph, &old),
            "ArrayFeatureExtractor" => extractor(graph, &old),
            "LinearClassifier" => labels(graph, &old),
            "FeatureVectorizer" => vectorizer(graph, &old),
            _ => None,
        };
        if is_expanded.is_none() {
            graph.node.push(old);
        }
    }
}

fn zip_map(graph: &mut pb::GraphProto, old: &pb::NodeProto) -> Option<()> {
    let ([input], [output]) = (&old.input[..], &old.output[..]) else { return None };
    graph.node.push(node("Identity", &[input], output, vec![]));
    Some(())
}

/// Missing values are NaN, or those equal to a number.
fn imputer(graph: &mut pb::GraphProto, old: &pb::NodeProto) -> Option<()> {
    let ([input], [output]) = (&old.input[..], &old.output[..]) else { return None };
    let [values, replaced, is_missing] =
        ["values", "replaced", "missing"].map(|name| format!("{output}.{name}"));
    let floats = attribute(old, "imputed_value_floats").map(|values| values.floats.clone());
    let integers = attribute(old, "imputed_value_int64s").map(|values| values.ints.clone());
    let found = match (floats, integers) {
        (Some(floats), _) if !floats.is_empty() => {
            graph.initializer.push(constant(&values, FLOAT, &floats, f32::to_le_bytes));
            let number = attribute(old, "replaced_value_float").map_or(0.0, |number| number.f);
            if number.is_nan() {
                node("IsNaN", &[input], &is_missing, vec![])
            } else {
                graph.initializer.push(constant(&replaced, FLOAT, &[number], f32::to_le_bytes));
                node("Equal", &[input, &replaced], &is_missing, vec![])
            }
        }
        (_, Some(integers)) if !integers.is_empty() => {
            graph.initializer.push(constant(&values, INT64, &integers, i64::to_le_bytes));
            let number = attribute(old, "replaced_value_int64").map_or(0, |number| number.i);
            graph.initializer.push(constant(&replaced, INT64, &[number], i64::to_le_bytes));
            node("Equal", &[input, &replaced], &is_missing, vec![])
        }
        _ => return None,
    };
    graph.node.push(found);
    graph.node.push(node("Where", &[&is_missing, &values, input], output, vec![]));
    Some(())
}

fn binarizer(graph: &mut pb::GraphProto, old: &pb::NodeProto) -> Option<()> {
    let ([input], [output]) = (&old.input[..], &old.output[..]) else { return None };
    let [threshold, is_above] = ["threshold", "above"].map(|name| format!("{output}.{name}"));
    let number = attribute(old, "threshold").map_or(0.0, |number| number.f);
    graph.initializer.push(constant(&threshold, FLOAT, &[number], f32::to_le_bytes));
    graph.node.push(node("Greater", &[input, &threshold], &is_above, vec![]));
    graph.node.push(node("Cast", &[&is_above], output, vec![int("to", FLOAT.into())]));
    Some(())
}

/// A choice along the last dimension. The indexes are a list; that of a list is a row.
fn extractor(graph: &mut pb::GraphProto, old: &pb::NodeProto) -> Option<()> {
    let ([input, indexes], [output]) = (&old.input[..], &old.output[..]) else { return None };
    let [list, flat, chosen, row] =
        ["list", "flat", "chosen", "row"].map(|name| format!("{output}.{name}"));
    let is_list = graph
        .initializer
        .iter()
        .any(|constant| constant.name == *input && constant.dims.len() == 1);
    graph.initializer.push(constant(&list, INT64, &[-1], i64::to_le_bytes));
    graph.node.push(node("Reshape", &[indexes, &list], &flat, vec![]));
    let gathered = if is_list { &chosen } else { output };
    graph.node.push(node("Gather", &[input, &flat], gathered, vec![int("axis", -1)]));
    if is_list {
        graph.initializer.push(constant(&row, INT64, &[1, -1], i64::to_le_bytes));
        graph.node.push(node("Reshape", &[&chosen, &row], output, vec![]));
    }
    Some(())
}

/// Labels that are texts are looked up by labels that are numbers.
fn labels(graph: &mut pb::GraphProto, old: &pb::NodeProto) -> Option<()> {
    let mut texts =
        attribute(old, "classlabels_strings").filter(|texts| !texts.strings.is_empty())?.clone();
    let [label, _scores] = &old.output[..] else { return None };
    let index = format!("{label}.index");
    let indexes: Vec<i64> = (0..texts.strings.len() as i64).collect();
    let mut classifier = old.clone();
    classifier.attribute.retain(|attribute| attribute.name != "classlabels_strings");
    classifier.attribute.push(ints("classlabels_ints", &indexes));
    classifier.output[0].clone_from(&index);
    graph.node.push(classifier);
    texts.name = "values_strings".to_owned();
    graph.node.push(node(
        "LabelEncoder",
        &[&index],
        label,
        vec![ints("keys_int64s", &indexes), texts],
    ));
    Some(())
}

fn vectorizer(graph: &mut pb::GraphProto, old: &pb::NodeProto) -> Option<()> {
    let [output] = &old.output[..] else { return None };
    let mut columns = Vec::new();
    for (index, input) in old.input.iter().enumerate() {
        let name = format!("{output}.{index}");
        graph.node.push(node("Cast", &[input], &name, vec![int("to", FLOAT.into())]));
        columns.push(name);
    }
    let columns: Vec<&String> = columns.iter().collect();
    graph.node.push(node("Concat", &columns, output, vec![int("axis", 1)]));
    Some(())
}
