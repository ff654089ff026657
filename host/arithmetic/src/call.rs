//! A checked operation and its execution.

use crate::Operation;

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

/// The instructions that execute an operation. All compute the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// AVX-512F on x86-64.
    Avx512,
    /// AVX2 and FMA on x86-64.
    Avx2,
    /// NEON on AArch64.
    Neon,
    /// WebAssembly's 128-bit vectors with relaxed multiply-add.
    Simd128,
    /// Portable code.
    Scalar,
}

/// A checked operation with its operands.
#[derive(Debug)]
pub struct Call<'a> {
    operation: Operation,
    operands: Operands<'a>,
    output_len: usize,
}

impl Operation {
    /// Check that all indexes of the operation lie within its operands.
    ///
    /// # Errors
    /// The sizes are inconsistent, zero where they must not be, or too large.
    pub fn check<'a>(&self, operands: Operands<'a>) -> Result<Call<'a>, Invalid> {
        let _ = (self, operands);
        Err(Invalid("not implemented"))
    }
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
        let _ = (self.operation, self.operands, backend, output, stopped);
        Err(Stopped)
    }
}
