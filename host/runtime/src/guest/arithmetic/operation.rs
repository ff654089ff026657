//! An operation as a guest describes it, with its operands as ranges of memory, and the checked call
//! that follows from it. Elements are f32 or 8-bit integers.

use bytemuck::Pod;
use guesthouse_arithmetic::{
    Backend, Call, ElementType, Invalid, Operands, Operation, QuantisedCall, QuantisedOperands,
    QuantisedOperation, QuantisedOutput, Stopped,
};
use wasmtime::format_err;

use super::range::Range;

/// An operation and its operands.
#[derive(Debug, Clone, Copy)]
pub(super) enum DescribedOperation {
    /// On f32, with the operands in the order of [`Operands`].
    F32(Operation, [Range; 4]),
    /// On 8-bit integers.
    Quantised(QuantisedOperation, QuantisedRanges),
}

/// The operands of an operation on 8-bit integers, as [`QuantisedOperands`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QuantisedRanges {
    pub(super) first: Range,
    pub(super) second: Range,
    pub(super) numbers: Range,
    pub(super) offsets: Range,
    pub(super) multipliers: Range,
    pub(super) bias: Range,
}

impl DescribedOperation {
    /// Check that the operation fits its operands, whose bytes `find` returns.
    pub(super) fn check<'a>(
        &self,
        find: impl Fn(Range) -> wasmtime::Result<&'a [u8]>,
    ) -> wasmtime::Result<CheckedCall<'a>> {
        let invalid = |invalid: Invalid| format_err!("invalid operation: {invalid}");
        match self {
            Self::F32(operation, [first, second, bias, residual]) => {
                let operands = Operands {
                    first: elements(find(*first)?)?,
                    second: elements(find(*second)?)?,
                    bias: elements(find(*bias)?)?,
                    residual: elements(find(*residual)?)?,
                };
                Ok(CheckedCall::F32(operation.check(operands).map_err(invalid)?))
            }
            Self::Quantised(operation, ranges) => {
                let operands = QuantisedOperands {
                    first: find(ranges.first)?,
                    second: find(ranges.second)?,
                    numbers: elements(find(ranges.numbers)?)?,
                    offsets: elements(find(ranges.offsets)?)?,
                    multipliers: elements(find(ranges.multipliers)?)?,
                    bias: elements(find(ranges.bias)?)?,
                };
                Ok(CheckedCall::Quantised(operation.check(operands).map_err(invalid)?))
            }
        }
    }
}

/// A checked operation with its operands.
#[derive(Debug, Clone, Copy)]
pub(super) enum CheckedCall<'a> {
    F32(Call<'a>),
    Quantised(QuantisedCall<'a>),
}

impl CheckedCall<'_> {
    /// The number of elements of the output.
    pub(super) fn output_len(&self) -> usize {
        match self {
            Self::F32(call) => call.output_len(),
            Self::Quantised(call) => call.output_len(),
        }
    }

    /// The length of the output.
    pub(super) fn output_bytes(&self) -> usize {
        let element = match self {
            Self::F32(_) => ElementType::F32,
            Self::Quantised(call) => call.output_type(),
        };
        self.output_len() * element.size()
    }

    /// About how many multiplications it takes.
    pub(super) fn work(&self) -> u64 {
        match self {
            Self::F32(call) => call.work(),
            Self::Quantised(call) => call.work(),
        }
    }

    /// Calls whose outputs, one behind the other, are the output of this one.
    pub(super) fn split(&self, parts: usize) -> Vec<Self> {
        match self {
            Self::F32(call) => call.split(parts).into_iter().map(CheckedCall::F32).collect(),
            Self::Quantised(call) => {
                call.split(parts).into_iter().map(CheckedCall::Quantised).collect()
            }
        }
    }

    /// Compute the bytes of the output.
    ///
    /// # Errors
    /// [`Stopped`], as soon as `stopped` returns true.
    ///
    /// # Panics
    /// The output does not have [`CheckedCall::output_bytes`] bytes, aligned to its elements.
    pub(super) fn execute(
        &self,
        backend: Backend,
        output: &mut [u8],
        stopped: &mut dyn FnMut() -> bool,
    ) -> Result<(), Stopped> {
        match self {
            Self::F32(call) => call.execute(backend, bytemuck::cast_slice_mut(output), stopped),
            Self::Quantised(call) => {
                let output = match call.output_type() {
                    ElementType::U8 => QuantisedOutput::U8(output),
                    ElementType::F32 => QuantisedOutput::F32(bytemuck::cast_slice_mut(output)),
                };
                call.execute(backend, output, stopped)
            }
        }
    }
}

fn elements<E: Pod>(bytes: &[u8]) -> wasmtime::Result<&[E]> {
    // An empty slice may be anywhere.
    if bytes.is_empty() {
        return Ok(&[]);
    }
    bytemuck::try_cast_slice(bytes).map_err(|_error| format_err!("a list is not aligned"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_operand_need_not_be_aligned() {
        let memory = [0_u64; 2];
        let bytes: &[u8] = bytemuck::cast_slice(&memory);
        assert_eq!(elements::<f32>(&bytes[1..1]).unwrap(), [0.0; 0]);
        assert_eq!(elements::<f32>(&bytes[4..12]).unwrap(), [0.0; 2]);
        assert!(elements::<f32>(&bytes[1..5]).is_err());
        assert_eq!(elements::<u8>(&bytes[1..3]).unwrap(), [0; 2]);
    }
}
