//! Nodes that quantise numbers by the range that they have in a call, and products of such values.

use std::sync::Arc;

use guesthouse_arithmetic::{
    Operands, Operation, QuantisedEnding, QuantisedOperands, QuantisedOperation, QuantisedProduct,
    Reduction, ReductionFunction, Requantisation, Tail,
};
use tract_onnx::tract_core::internal::*;

use super::execute::{execute, execute_quantised};
use super::node::{Constant, Resolved, size};

/// The u8 values of numbers, their scale and their zero point, so that the least and the greatest
/// number and 0 are values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DynamicQuantise;

impl DynamicQuantise {
    fn range(input: &[f32]) -> TractResult<[f32; 2]> {
        let bound = |function| -> TractResult<f32> {
            let reduction = Reduction { function, columns: size(input.len())?, scale: 1.0 };
            let resolved = Resolved::new(Operation::Reduction(reduction), tvec!(1));
            let operands = Operands { first: input, ..Operands::default() };
            execute(&resolved, |_part| Ok(operands))?.cast_to_scalar::<f32>()
        };
        let bounds = [bound(ReductionFunction::Minimum)?, bound(ReductionFunction::Maximum)?];
        Ok([bounds[0].min(0.0), bounds[1].max(0.0)])
    }
}

impl Op for DynamicQuantise {
    fn name(&self) -> StaticName {
        "DynamicQuantise".into()
    }

    op_as_typed_op!();
}

impl EvalOp for DynamicQuantise {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let view = input.try_as_plain_ram()?;
        let numbers = view.as_slice::<f32>()?;
        let [least, greatest] = if numbers.is_empty() { [0.0; 2] } else { Self::range(numbers)? };
        let steps = f32::from(u8::MAX);
        let scale = if least == greatest { 1.0 } else { (greatest - least) / steps };
        let zero_point = (-least / scale).round_ties_even().clamp(0.0, steps);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is clamped"
        )]
        let zero_point = zero_point as u8;
        let operation = QuantisedOperation::Quantise(scale, Requantisation::new(zero_point));
        let operands = QuantisedOperands { numbers, ..QuantisedOperands::default() };
        let values = execute_quantised(&operation, operands, input.shape())?;
        Ok(tvec!(
            values.into_tvalue(),
            tensor0(scale).into_tvalue(),
            tensor0(zero_point).into_tvalue()
        ))
    }
}

impl TypedOp for DynamicQuantise {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let scalar = [0_usize; 0];
        Ok(tvec!(u8::fact(inputs[0].shape.clone()), f32::fact(scalar), u8::fact(scalar)))
    }

    as_op!();
}

/// The product of rows of `k` values with a matrix of weights. Inputs: the values, their scale, and
/// their zero point. Output: rows of `n` numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DynamicProduct {
    pub(super) k: usize,
    pub(super) weights: Arc<[u8]>,
    /// The sum of the weights, by column.
    pub(super) sums: Arc<[i32]>,
    /// The scale of the weights, by column.
    pub(super) scales: Constant,
    /// By column; may be empty.
    pub(super) bias: Constant,
    /// Applied to each number, last.
    pub(super) tail: Tail,
    pub(super) shape: ShapeFact,
}

/// Values are compared by their bits only for constants, which have been read from a model.
impl Eq for DynamicProduct {}

impl Op for DynamicProduct {
    fn name(&self) -> StaticName {
        "DynamicProduct".into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for DynamicProduct {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (values, scale, zero_point) = args_3!(inputs);
        let scale = scale.cast_to_scalar::<f32>()?;
        let zero_point = i32::from(zero_point.cast_to_scalar::<u8>()?);
        let (columns, rows) = values.shape().split_last().context("values without rows")?;
        ensure!(*columns == self.k, "rows of another length");
        let n = self.sums.len();
        let sizes = [size(rows.iter().product())?, size(n)?, size(self.k)?];
        let ending = QuantisedEnding::Real(self.tail);
        let product = QuantisedProduct { size: sizes, ending };
        let offsets: Vec<i32> = self.sums.iter().map(|sum| -zero_point * sum).collect();
        let multipliers: Vec<f32> = self.scales.iter().map(|weights| scale * weights).collect();
        let view = values.try_as_plain_ram()?;
        let operands = QuantisedOperands {
            first: view.as_slice()?,
            second: &self.weights,
            numbers: &[],
            offsets: &offsets,
            multipliers: &multipliers,
            bias: &self.bias,
        };
        let shape: TVec<usize> = rows.iter().copied().chain([n]).collect();
        let operation = QuantisedOperation::MatrixProduct(product);
        Ok(tvec!(execute_quantised(&operation, operands, &shape)?.into_tvalue()))
    }
}

impl TypedOp for DynamicProduct {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(self.shape.clone())))
    }

    as_op!();
}
