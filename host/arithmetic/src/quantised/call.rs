//! A checked operation on 8-bit tensors with its operands, and its execution.

use super::{ElementType, QuantisedOperation, execute};
use crate::{Backend, Stopped};

/// The values of an operation on 8-bit tensors, as [`QuantisedOperation`] documents. An operand
/// that an operation does not have, or that is left out, is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuantisedOperands<'a> {
    /// The first u8 operand.
    pub first: &'a [u8],
    /// The second operand: bit patterns of i8 weights, or the right one of two u8 operands.
    pub second: &'a [u8],
    /// The numbers to quantise.
    pub numbers: &'a [f32],
    /// What is added to the sums, by output channel or column.
    pub offsets: &'a [i32],
    /// The factors of the sums, by output channel or column.
    pub multipliers: &'a [f32],
    /// The bias of an f32 output, by output channel or column.
    pub bias: &'a [f32],
}

/// The elements of an output.
#[derive(Debug)]
pub enum QuantisedOutput<'a> {
    /// Of [`ElementType::U8`].
    U8(&'a mut [u8]),
    /// Of [`ElementType::F32`].
    F32(&'a mut [f32]),
}

impl QuantisedOutput<'_> {
    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        match self {
            Self::U8(_) => ElementType::U8,
            Self::F32(_) => ElementType::F32,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A checked operation on 8-bit tensors with its operands.
#[derive(Debug, Clone, Copy)]
pub struct QuantisedCall<'a> {
    pub(crate) operation: QuantisedOperation,
    pub(crate) operands: QuantisedOperands<'a>,
    pub(crate) output_len: usize,
}

impl QuantisedCall<'_> {
    /// The number of elements of the output, of the type [`QuantisedOperation::output_type`].
    pub fn output_len(&self) -> usize {
        self.output_len
    }

    /// The type of the elements of the output.
    pub fn output_type(&self) -> ElementType {
        self.operation.output_type()
    }

    /// Compute the output. `stopped` is asked about every 0.4 ms whether to stop.
    ///
    /// # Errors
    /// [`Stopped`], as soon as `stopped` returns true.
    ///
    /// # Panics
    /// The output does not have [`QuantisedCall::output_len`] elements of the operation's type, or
    /// the processor does not have the backend's instructions.
    pub fn execute(
        &self,
        backend: Backend,
        output: QuantisedOutput<'_>,
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<(), Stopped> {
        assert_eq!(output.len(), self.output_len, "the output has another length");
        assert_eq!(output.element_type(), self.output_type(), "the output has another type");
        assert!(backend.is_available(), "this processor has no {backend}");
        execute::execute(self, backend, output, stopped)
    }
}
