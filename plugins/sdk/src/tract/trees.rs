//! Ensembles of decision trees: those of tract are slow and do not take all that are exported, and there
//! are none for regression.
//!
//! Bounds: every index in an ensemble is checked when it is read, and no path is longer than the
//! number of nodes.

mod classifier;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_hir::internal::*;

use super::node::size;

const CLASSIFIER: &str = "TreeEnsembleClassifier";
const REGRESSOR: &str = "TreeEnsembleRegressor";

/// Read the ensembles of ONNX files for which tract has no operation.
pub(super) fn add_missing(onnx: &mut Onnx) {
    onnx.op_register.insert(REGRESSOR, regressor);
}

/// Read the ensembles of ONNX files with this module instead of with tract.
pub(super) fn replace(onnx: &mut Onnx) {
    onnx.op_register.insert(CLASSIFIER, classifier);
}

type Parsed = (Box<dyn InferenceOp>, Vec<String>);

fn classifier(_context: &ParsingContext, node: &NodeProto) -> TractResult<Parsed> {
    classifier::parse(node)
}

fn regressor(_context: &ParsingContext, node: &NodeProto) -> TractResult<Parsed> {
    let targets = node.get_attr::<usize>("n_targets")?;
    let transform = node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE");
    ensure!(transform == "NONE", "the transform {transform} of a regression is not supported");
    let trees = Trees::parse(node, "target", targets)?;
    let scale = match node.get_attr_opt("aggregate_function")?.unwrap_or("SUM") {
        "SUM" => 1.0,
        "AVERAGE" => (trees.roots.len() as f32).recip(),
        function => bail!("the function {function} of trees is not supported"),
    };
    let base = node.get_attr_opt_vec::<f32>("base_values")?.unwrap_or_else(|| vec![0.0; targets]);
    ensure!(base.len() == targets, "a base value for each target");
    Ok((expand(Regressor { trees, scale, base: base.into() }), vec![]))
}

#[derive(Debug, Clone)]
struct Regressor {
    trees: Trees,
    /// The factor of the sums.
    scale: f32,
    /// What is added to them, by target.
    base: Arc<[f32]>,
}

impl Expansion for Regressor {
    fn name(&self) -> StaticName {
        REGRESSOR.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, f32::datum_type())?;
        solver.equals(&outputs[0].rank, 2)?;
        solver.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
        solver.equals(&outputs[0].shape[1], self.trees.outputs.to_dim())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let sums = model.wire_node(format!("{prefix}.sums"), self.trees.clone(), inputs)?[0];
        let scale = model.add_const(format!("{prefix}.scale"), tensor2(&[[self.scale]]))?;
        let means = model.wire_node(format!("{prefix}.means"), math::mul(), &[sums, scale])?[0];
        let base = Tensor::from_shape(&[1, self.base.len()], &self.base)?;
        let base = model.add_const(format!("{prefix}.base"), base)?;
        model.wire_node(prefix, math::add(), &[means, base])
    }
}

/// The trees that a row walks through at the same time, because a step waits for the last one.
const AT_ONCE: usize = 16;

/// Trees whose leaves vote. The output is the sum of the votes for each class or target.
#[derive(Debug, Clone, PartialEq)]
struct Trees {
    /// The index of each tree's first node.
    roots: Arc<[u32]>,
    nodes: Arc<[TreeNode]>,
    /// Where the votes of each node are; only leaves have some.
    ranges: Arc<[Range<usize>]>,
    /// Classes or targets with weights.
    votes: Arc<[(usize, f32)]>,
    /// Whether all comparisons are of this kind, as those of most ensembles are.
    are_at_most: bool,
    /// The least number of columns of an input.
    features: usize,
    /// The columns of the output.
    outputs: usize,
}

/// Values are compared by their bits only for constants, which have been read from a model.
impl Eq for Trees {}

/// Indexes have 32 bits, so that more nodes fit into a cache.
#[derive(Debug, Clone, PartialEq)]
struct TreeNode {
    feature: u32,
    threshold: f32,
    comparison: Comparison,
    is_true_if_missing: bool,
    /// Where to go on if the comparison is false, and if it is true. A leaf stays where it is.
    next: [u32; 2],
}

impl TreeNode {
    fn next(&self, row: &[f32], holds: impl Fn(Comparison, f32, f32) -> bool) -> u32 {
        let value = row[self.feature as usize];
        let holds = holds(self.comparison, value, self.threshold)
            | (value.is_nan() & self.is_true_if_missing);
        self.next[usize::from(holds)]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    AtMost,
    Below,
    AtLeast,
    Above,
    Equal,
    Unequal,
}

impl Comparison {
    /// The comparison with this name; `None` for a leaf.
    fn parse(name: &str) -> TractResult<Option<Self>> {
        Ok(Some(match name {
            "BRANCH_LEQ" => Self::AtMost,
            "BRANCH_LT" => Self::Below,
            "BRANCH_GTE" => Self::AtLeast,
            "BRANCH_GT" => Self::Above,
            "BRANCH_EQ" => Self::Equal,
            "BRANCH_NEQ" => Self::Unequal,
            "LEAF" => return Ok(None),
            _ => bail!("a node of a tree has the unknown mode {name}"),
        }))
    }

    fn holds(self, value: f32, threshold: f32) -> bool {
        match self {
            Self::AtMost => value <= threshold,
            Self::Below => value < threshold,
            Self::AtLeast => value >= threshold,
            Self::Above => value > threshold,
            Self::Equal => value == threshold,
            Self::Unequal => value != threshold,
        }
    }
}

impl Trees {
    /// Read the attributes of a node. Those of leaves begin with `prefix`.
    fn parse(node: &NodeProto, prefix: &str, outputs: usize) -> TractResult<Self> {
        let ids = |name: &str| node.get_attr_vec::<usize>(name);
        let keys = |tree: &str, id: &str| -> TractResult<Vec<(usize, usize)>> {
            Ok(ids(tree)?.into_iter().zip(ids(id)?).collect())
        };
        let node_keys = keys("nodes_treeids", "nodes_nodeids")?;
        let leaf_keys =
            keys(&format!("{prefix}_treeids"), &format!("{prefix}_nodeids"))?.into_iter();
        let classes = ids(&format!("{prefix}_ids"))?;
        ensure!(classes.iter().all(|class| *class < outputs), "a vote for an unknown class");
        let weights = node.get_attr_vec::<f32>(&format!("{prefix}_weights"))?;
        let mut by_leaf: HashMap<_, Vec<(usize, f32)>> = HashMap::new();
        for (key, vote) in leaf_keys.zip(classes.into_iter().zip(weights)) {
            by_leaf.entry(key).or_default().push(vote);
        }
        let mut order: Vec<usize> = (0..node_keys.len()).collect();
        order.sort_by_key(|index| node_keys[*index]);
        let position: HashMap<_, usize> =
            order.iter().enumerate().map(|(to, from)| (node_keys[*from], to)).collect();
        let splits = Splits::parse(node, node_keys.len())?;
        let (mut roots, mut nodes) = (vec![], vec![]);
        let (mut ranges, mut votes) = (vec![], vec![]);
        for (to, from) in order.iter().enumerate() {
            let (tree, _id) = node_keys[*from];
            if to == 0 || node_keys[order[to - 1]].0 != tree {
                roots.push(size(to)?);
            }
            let comparison = Comparison::parse(splits.modes[*from])?;
            let next = if comparison.is_some() {
                let next = [splits.otherwise[*from], splits.then[*from]];
                let next = next.map(|id| position.get(&(tree, id)).copied());
                let [Some(otherwise), Some(then)] = next else { bail!("a node is missing") };
                [size(otherwise)?, size(then)?]
            } else {
                [size(to)?; 2]
            };
            nodes.push(TreeNode {
                feature: size(splits.features[*from])?,
                threshold: splits.thresholds[*from],
                comparison: comparison.unwrap_or(Comparison::AtMost),
                is_true_if_missing: splits.missing.get(*from).is_some_and(|to| *to != 0),
                next,
            });
            let start = votes.len();
            if comparison.is_none() {
                votes.extend(by_leaf.remove(&node_keys[*from]).unwrap_or_default());
            }
            ranges.push(start..votes.len());
        }
        let features = splits.features.iter().max().map_or(0, |feature| feature + 1);
        let are_at_most = nodes.iter().all(|node: &TreeNode| node.comparison == Comparison::AtMost);
        let (roots, nodes) = (roots.into(), nodes.into());
        let (ranges, votes) = (ranges.into(), votes.into());
        Ok(Self { roots, nodes, ranges, votes, are_at_most, features, outputs })
    }

    /// Add the votes for each row, given what a comparison is.
    fn vote(
        &self,
        (rows, columns): (&[f32], usize),
        output: &mut [f32],
        holds: impl Fn(Comparison, f32, f32) -> bool + Copy,
    ) {
        for (row, output) in rows.chunks_exact(columns).zip(output.chunks_exact_mut(self.outputs)) {
            self.add_votes(row, output, holds);
        }
    }

    fn add_votes(
        &self,
        row: &[f32],
        output: &mut [f32],
        holds: impl Fn(Comparison, f32, f32) -> bool + Copy,
    ) {
        for roots in self.roots.chunks(AT_ONCE) {
            let mut places = [0; AT_ONCE];
            let places = &mut places[..roots.len()];
            places.copy_from_slice(roots);
            for _ in 0..self.nodes.len() {
                let mut is_walking = false;
                for place in &mut *places {
                    let next = self.nodes[*place as usize].next(row, holds);
                    is_walking |= next != *place;
                    *place = next;
                }
                if !is_walking {
                    break;
                }
            }
            for place in places {
                for (class, weight) in &self.votes[self.ranges[*place as usize].clone()] {
                    output[*class] += weight;
                }
            }
        }
    }
}

/// The attributes of nodes, each as long as the others.
struct Splits<'a> {
    modes: Vec<&'a str>,
    features: Vec<usize>,
    thresholds: Vec<f32>,
    then: Vec<usize>,
    otherwise: Vec<usize>,
    /// May be empty.
    missing: Vec<i64>,
}

impl<'a> Splits<'a> {
    fn parse(node: &'a NodeProto, count: usize) -> TractResult<Self> {
        let splits = Self {
            modes: node.get_attr_vec("nodes_modes")?,
            features: node.get_attr_vec("nodes_featureids")?,
            thresholds: node.get_attr_vec("nodes_values")?,
            then: node.get_attr_vec("nodes_truenodeids")?,
            otherwise: node.get_attr_vec("nodes_falsenodeids")?,
            missing: node.get_attr_opt_vec("nodes_missing_value_tracks_true")?.unwrap_or_default(),
        };
        let Self { modes, features, thresholds, then, otherwise, .. } = &splits;
        let lens = [modes.len(), features.len(), thresholds.len(), then.len(), otherwise.len()];
        ensure!(lens == [count; 5], "the attributes of the nodes of trees have different lengths");
        Ok(splits)
    }
}

impl Op for Trees {
    fn name(&self) -> StaticName {
        "Trees".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Trees {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let [rows, columns] = *input.shape() else { bail!("trees take rows of features") };
        ensure!(columns >= self.features.max(1), "trees use more features than there are");
        let input = input.cast_to::<f32>()?;
        let features = input.try_as_plain_ram()?;
        let mut output = Tensor::zero::<f32>(&[rows, self.outputs])?;
        let mut scores = output.try_as_plain_ram_mut()?;
        let scores = scores.as_slice_mut::<f32>()?;
        let rows = (features.as_slice::<f32>()?, columns);
        if self.are_at_most {
            self.vote(rows, scores, |_, value, threshold| value <= threshold);
        } else {
            self.vote(rows, scores, Comparison::holds);
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Trees {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact([inputs[0].shape[0].clone(), self.outputs.to_dim()])))
    }

    as_op!();
}
