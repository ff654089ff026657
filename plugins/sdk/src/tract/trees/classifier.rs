//! From the votes of trees to the class and the scores of each row.

use std::sync::Arc;

use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal::*;

use super::{CLASSIFIER, Parsed, Trees};
use crate::tract::categories::Lookup;

/// Read a classifier of an ONNX file.
pub(super) fn parse(node: &NodeProto) -> TractResult<Parsed> {
    let labels = match node.get_attr_opt_vec::<i64>("classlabels_int64s")? {
        Some(labels) => tensor1(&labels),
        None => tensor1(&node.get_attr_vec::<String>("classlabels_strings")?),
    };
    let count = labels.len();
    let trees = Trees::parse(node, "class", count)?;
    let transform = match node.get_attr_opt::<&str>("post_transform")?.unwrap_or("NONE") {
        "NONE" => Transform::None,
        "SOFTMAX" => Transform::Softmax,
        "LOGISTIC" => Transform::Logistic,
        other => bail!("the transform {other} of a classification is not supported"),
    };
    let base = node.get_attr_opt_vec::<f32>("base_values")?.unwrap_or_default();
    let mut votes = trees.votes.iter();
    let first = votes.next().map(|(class, _weight)| *class);
    let is_binary = count == 2 && votes.all(|(class, _weight)| Some(*class) == first);
    let fits = base.is_empty() || base.len() == count || is_binary && base.len() == 1;
    ensure!(fits, "there are {} base values for {count} classes", base.len());
    let are_positive = trees.votes.iter().all(|(_class, weight)| *weight >= 0.0);
    let ending = Ending { count, base: base.into(), is_binary, are_positive, transform };
    Ok((expand(Classifier { trees, ending, labels: labels.into_arc_tensor() }), vec![]))
}

#[derive(Debug, Clone)]
struct Classifier {
    trees: Trees,
    ending: Ending,
    labels: Arc<Tensor>,
}

/// What follows the votes.
#[derive(Debug, Clone, PartialEq)]
struct Ending {
    count: usize,
    /// What is added to the votes for each class; empty if nothing is.
    base: Arc<[f32]>,
    /// All votes are for one of two classes: they decide for the second one if there are enough.
    is_binary: bool,
    /// No vote is negative, so that half of them are enough.
    are_positive: bool,
    transform: Transform,
}

/// Numbers are compared only for constants, which have been read from a model.
impl Eq for Ending {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transform {
    None,
    Softmax,
    Logistic,
}

impl Ending {
    /// The class of a row of votes, which become scores.
    fn finish(&self, votes: &mut [f32]) -> usize {
        if self.is_binary {
            return self.finish_binary(votes);
        }
        votes.iter_mut().zip(&*self.base).for_each(|(votes, base)| *votes += base);
        let best =
            |best: usize, class: usize| if votes[class] > votes[best] { class } else { best };
        let class = (0..votes.len()).fold(0, best);
        match self.transform {
            Transform::None => {}
            Transform::Logistic => votes.iter_mut().for_each(|votes| *votes = logistic(*votes)),
            Transform::Softmax => softmax(votes),
        }
        class
    }

    fn finish_binary(&self, votes: &mut [f32]) -> usize {
        let sum = votes.iter().chain(&*self.base).sum::<f32>();
        let is_logistic = self.transform == Transform::Logistic;
        let enough = if self.are_positive && !is_logistic { 0.5 } else { 0.0 };
        let scores = match self.transform {
            Transform::Logistic => [logistic(-sum), logistic(sum)],
            Transform::None if self.are_positive => [1.0 - sum, sum],
            Transform::None => [-sum, sum],
            Transform::Softmax => {
                let mut scores = [-sum, sum];
                softmax(&mut scores);
                scores
            }
        };
        votes.copy_from_slice(&scores);
        usize::from(sum > enough)
    }
}

fn logistic(number: f32) -> f32 {
    (1.0 + (-number).exp()).recip()
}

fn softmax(numbers: &mut [f32]) {
    let greatest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    numbers.iter_mut().for_each(|number| *number = (*number - greatest).exp());
    let sum: f32 = numbers.iter().sum();
    numbers.iter_mut().for_each(|number| *number /= sum);
}

impl Expansion for Classifier {
    fn name(&self) -> StaticName {
        CLASSIFIER.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(2)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 2)?;
        solver.equals(&outputs[0].datum_type, self.labels.datum_type())?;
        solver.equals(&outputs[0].rank, 1)?;
        solver.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
        solver.equals(&outputs[1].datum_type, f32::datum_type())?;
        solver.equals(&outputs[1].rank, 2)?;
        solver.equals(&outputs[1].shape[0], &inputs[0].shape[0])?;
        solver.equals(&outputs[1].shape[1], self.ending.count.to_dim())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let votes = model.wire_node(format!("{prefix}.votes"), self.trees.clone(), inputs)?;
        let found = model.wire_node(format!("{prefix}.classes"), self.ending.clone(), &votes)?;
        let lookup = Lookup::of_indexes(&self.labels)?;
        let label = model.wire_node(prefix, lookup, &found[..1])?[0];
        Ok(tvec!(label, found[1]))
    }
}

impl Op for Ending {
    fn name(&self) -> StaticName {
        "Votes".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Ending {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut scores = args_1!(inputs).into_tensor();
        let mut view = scores.try_as_plain_ram_mut()?;
        let rows = view.as_slice_mut::<f32>()?.chunks_exact_mut(self.count.max(1));
        let classes: Vec<i64> = rows.map(|row| self.finish(row) as i64).collect();
        Ok(tvec!(tensor1(&classes).into_tvalue(), scores.into_tvalue()))
    }
}

impl TypedOp for Ending {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let rows = inputs[0].shape[0].clone();
        Ok(tvec!(i64::fact([rows.clone()]), f32::fact([rows, self.count.to_dim()])))
    }

    as_op!();
}
