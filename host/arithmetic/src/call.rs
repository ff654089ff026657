//! A checked operation with its operands, and its execution.

use crate::{Backend, Operation, execute};

/// The values of an operation, in the order that [`Operation`] documents. An operand that an
/// operation does not have, or that is left out, is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Operands<'a> {
    /// The first operand.
    pub first: &'a [f32],
    /// The second operand: weights, or the right one of two.
    pub second: &'a [f32],
    /// The bias.
    pub bias: &'a [f32],
    /// The residual.
    pub residual: &'a [f32],
}

/// Why an operation cannot be executed: a lower-case fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid(pub(crate) &'static str);

impl std::fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for Invalid {}

/// The execution was stopped; the output is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// A checked operation with its operands.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub(crate) operation: Operation,
    pub(crate) operands: Operands<'a>,
    pub(crate) output_len: usize,
}

impl Call<'_> {
    /// The number of elements of the output.
    pub fn output_len(&self) -> usize {
        self.output_len
    }

    /// Compute the output. `stopped` is asked about every 0.4 ms whether to stop.
    ///
    /// # Errors
    /// [`Stopped`], as soon as `stopped` returns true.
    ///
    /// # Panics
    /// The output does not have [`Call::output_len`] elements, or the processor does not have the
    /// backend's instructions.
    pub fn execute(
        &self,
        backend: Backend,
        output: &mut [f32],
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<(), Stopped> {
        assert_eq!(output.len(), self.output_len, "the output has another length");
        assert!(backend.is_available(), "this processor has no {backend}");
        execute::execute(self, backend, output, stopped)
    }
}
