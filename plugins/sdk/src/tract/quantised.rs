//! The node of tract's graph that stands for one operation of `guesthouse-arithmetic` on 8-bit
//! tensors.
//!
//! Values are u8 with a zero point. Weights are packed when the node is made.

use std::sync::Arc;

use guesthouse_arithmetic::{
    Quantisation, QuantisedConvolution, QuantisedEnding, QuantisedOperands, QuantisedOperation,
    QuantisedProduct, QuantisedSum, Requantisation, Tail,
};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::PoolSpec;

use super::convolution::windows;
use super::execute::execute_quantised;
use super::node::{Constant, size};

/// An operation on 8-bit tensors whose sizes may depend on the call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QuantisedNode {
    pub(super) kind: QuantisedKind,
    /// The output's shape, with the names of dimensions.
    shape: ShapeFact,
}

/// Values are compared by their bits only for constants, which have been read from a model.
impl Eq for QuantisedNode {}

/// What a node computes. Constants are part of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum QuantisedKind {
    /// Input: the image.
    Convolution { windows: Box<Windows>, weights: Arc<[u8]>, ending: Ending },
    /// Input: rows of `k` elements. Output: rows of `n` elements.
    Product { k: usize, n: usize, weights: Arc<[u8]>, ending: Ending },
    /// Inputs: left and right, of the same shape.
    Sum(QuantisedSum),
    /// Input: numbers, which are divided by the scale.
    Quantise(f32, Requantisation),
    /// Input: values.
    Dequantise(Quantisation),
}

/// Where the kernel of a convolution is applied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Windows {
    pub(super) pool: PoolSpec,
    /// Each channel has a kernel of its own.
    pub(super) is_depthwise: bool,
    /// The value around the input.
    pub(super) padding_value: u8,
}

/// What follows the sums of products, by output channel or column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ending {
    pub(super) offsets: Arc<[i32]>,
    pub(super) multipliers: Constant,
    /// Only if the output is real; may be empty.
    pub(super) bias: Constant,
    pub(super) kind: QuantisedEnding,
}

impl QuantisedNode {
    pub(super) fn new(kind: QuantisedKind, shape: ShapeFact) -> Self {
        Self { kind, shape }
    }

    pub(super) fn shape(&self) -> &ShapeFact {
        &self.shape
    }

    /// What is applied to the numbers of a real output.
    pub(super) fn tail(&self) -> Option<Tail> {
        match &self.kind {
            QuantisedKind::Convolution { ending, .. } | QuantisedKind::Product { ending, .. } => {
                match ending.kind {
                    QuantisedEnding::Real(tail) => Some(tail),
                    QuantisedEnding::Requantise(_) => None,
                }
            }
            _ => None,
        }
    }

    /// The operation with this tail; it must have one.
    pub(super) fn with_tail(&self, tail: Tail) -> Self {
        let mut after = self.clone();
        if let QuantisedKind::Convolution { ending, .. } | QuantisedKind::Product { ending, .. } =
            &mut after.kind
        {
            ending.kind = QuantisedEnding::Real(tail);
        }
        after
    }

    /// Describe the operation for an input of this shape, and the shape of its output.
    fn resolve(&self, input: &[usize]) -> TractResult<(QuantisedOperation, TVec<usize>)> {
        Ok(match &self.kind {
            QuantisedKind::Convolution { windows: at, ending, .. } => {
                let (geometry, shape) = windows(&at.pool, input)?;
                let (padding_value, ending) = (at.padding_value, ending.kind);
                let convolution = QuantisedConvolution { geometry, padding_value, ending };
                let operation = if at.is_depthwise {
                    QuantisedOperation::DepthwiseConvolution(convolution)
                } else {
                    QuantisedOperation::Convolution(convolution)
                };
                (operation, shape)
            }
            QuantisedKind::Product { k, n, ending, .. } => {
                let (columns, rows) = input.split_last().context("an operand without rows")?;
                ensure!(columns == k, "rows of another length");
                let sizes = [size(rows.iter().product())?, size(*n)?, size(*k)?];
                let product = QuantisedProduct { size: sizes, ending: ending.kind };
                let shape = rows.iter().copied().chain([*n]).collect();
                (QuantisedOperation::MatrixProduct(product), shape)
            }
            QuantisedKind::Sum(sum) => (QuantisedOperation::Sum(*sum), input.into()),
            QuantisedKind::Quantise(scale, output) => {
                (QuantisedOperation::Quantise(*scale, *output), input.into())
            }
            QuantisedKind::Dequantise(quantisation) => {
                (QuantisedOperation::Dequantise(*quantisation), input.into())
            }
        })
    }

    fn execute(&self, inputs: &[TValue]) -> TractResult<Tensor> {
        let input = inputs.first().context("an operation has an input")?;
        let (operation, shape) = self.resolve(input.shape())?;
        let view = input.try_as_plain_ram()?;
        let other;
        let operands = match &self.kind {
            QuantisedKind::Convolution { weights, ending, .. }
            | QuantisedKind::Product { weights, ending, .. } => {
                let Ending { offsets, multipliers, bias, .. } = ending;
                let (first, second) = (view.as_slice()?, &**weights);
                QuantisedOperands { first, second, numbers: &[], offsets, multipliers, bias }
            }
            QuantisedKind::Sum(_) => {
                other = inputs.get(1).context("a sum has two inputs")?.try_as_plain_ram()?;
                let (first, second) = (view.as_slice()?, other.as_slice()?);
                QuantisedOperands { first, second, ..QuantisedOperands::default() }
            }
            QuantisedKind::Quantise(..) => {
                QuantisedOperands { numbers: view.as_slice()?, ..QuantisedOperands::default() }
            }
            QuantisedKind::Dequantise(_) => {
                QuantisedOperands { first: view.as_slice()?, ..QuantisedOperands::default() }
            }
        };
        execute_quantised(&operation, operands, &shape).with_context(|| format!("{operation:?}"))
    }
}

impl Op for QuantisedNode {
    fn name(&self) -> StaticName {
        match &self.kind {
            QuantisedKind::Convolution { windows, .. } if windows.is_depthwise => {
                "QuantisedDepthwiseConvolution"
            }
            QuantisedKind::Convolution { .. } => "QuantisedConvolution",
            QuantisedKind::Product { .. } => "QuantisedProduct",
            QuantisedKind::Sum(_) => "QuantisedSum",
            QuantisedKind::Quantise(..) => "Quantise",
            QuantisedKind::Dequantise(_) => "Dequantise",
        }
        .into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for QuantisedNode {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(self.execute(&inputs)?.into_tvalue()))
    }
}

impl TypedOp for QuantisedNode {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let is_real = self.tail().is_some() || matches!(self.kind, QuantisedKind::Dequantise(_));
        let datum_type = if is_real { f32::datum_type() } else { u8::datum_type() };
        Ok(tvec!(datum_type.fact(self.shape.clone())))
    }

    as_op!();
}
