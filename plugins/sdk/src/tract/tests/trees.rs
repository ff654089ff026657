//! Ensembles of decision trees.

use tract_onnx::prelude::*;

use super::file::{File, Type, floats, int, ints, strings};
use crate::tract::{Model, ModelBuilder, ModelInput};

/// Two trees of three features: the first one compares twice, the second one once.
fn ensemble(operation: &str, outputs: &[&str], prefix: &str, kind: Kind) -> File {
    let name = |name: &str| format!("{prefix}_{name}");
    let modes = ["BRANCH_LEQ", "BRANCH_GTE", "LEAF", "LEAF", "LEAF", "BRANCH_EQ", "LEAF", "LEAF"];
    File::new(17).input("x", Type::Float).node(
        operation,
        &["x"],
        outputs,
        [
            ints("nodes_treeids", &[0, 0, 0, 0, 0, 1, 1, 1]),
            ints("nodes_nodeids", &[0, 1, 2, 3, 4, 0, 1, 2]),
            ints("nodes_featureids", &[0, 1, 0, 0, 0, 2, 0, 0]),
            ints("nodes_truenodeids", &[1, 3, 0, 0, 0, 1, 0, 0]),
            ints("nodes_falsenodeids", &[2, 4, 0, 0, 0, 2, 0, 0]),
            ints("nodes_missing_value_tracks_true", &[1, 0, 0, 0, 0, 0, 0, 0]),
            floats("nodes_values", &[0.5, 2.0, 0.0, 0.0, 0.0, 7.0, 0.0, 0.0]),
            strings("nodes_modes", &modes),
            ints(&name("treeids"), &[0, 0, 0, 1, 1]),
            ints(&name("nodeids"), &[2, 3, 4, 1, 2]),
            ints(&name("ids"), &kind.votes),
            floats(&name("weights"), &[1.0, 2.0, 4.0, 8.0, 16.0]),
            kind.outputs,
        ],
    )
}

struct Kind {
    /// The class or target of each leaf.
    votes: [i64; 5],
    outputs: tract_onnx::pb::AttributeProto,
}

fn run(file: File, output: usize) -> Vec<f32> {
    let features = [
        // At most 0.5 and at least 2; equal to 7.
        [0.5, 2.0, 7.0],
        // At most 0.5 and below 2; not equal to 7.
        [0.0, 1.0, 6.0],
        // Above 0.5.
        [0.6, 9.0, 7.0],
        // Missing values are at most 0.5, and not at least 2 or equal to 7.
        [f32::NAN; 3],
    ];
    let rows = ModelInput::new::<f32>().named("rows").fixed(3);
    let model = Model::new(ModelBuilder::default().input(rows).plan_of(file.model()).unwrap());
    model.run([tensor2(&features)]).unwrap().fp32(output).unwrap()
}

#[test]
fn the_leaves_of_trees_vote_for_classes() {
    let kind = Kind { votes: [0, 1, 2, 2, 1], outputs: ints("classlabels_int64s", &[5, 6, 7]) };
    let file = ensemble("TreeEnsembleClassifier", &["label", "scores"], "class", kind);
    let scores = run(file.output("scores", Type::Float), 0);
    assert_eq!(scores, [0.0, 2.0, 8.0, 0.0, 16.0, 4.0, 1.0, 0.0, 8.0, 0.0, 16.0, 4.0]);
}

#[test]
fn the_leaves_of_trees_vote_for_targets() {
    let kind = Kind { votes: [0, 1, 0, 1, 0], outputs: int("n_targets", 2) };
    let file = ensemble("TreeEnsembleRegressor", &["sums"], "target", kind);
    let sums = run(file.output("sums", Type::Float), 0);
    assert_eq!(sums, [0.0, 10.0, 20.0, 0.0, 1.0, 8.0, 20.0, 0.0]);
}
