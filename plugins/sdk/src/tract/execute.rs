//! Executes an operation on tract's tensors: its operands are borrowed, and its result is written
//! to the tensor that is returned.

use guesthouse_arithmetic::{Operands, Operation};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

use crate::arithmetic::{Executor, executor};

/// Execute the operation; the result has this shape.
pub(super) fn execute(
    operation: &Operation,
    operands: Operands<'_>,
    shape: &[usize],
) -> TractResult<Tensor> {
    if shape.contains(&0) {
        return Tensor::zero::<f32>(shape);
    }
    ensure!(!operands.first.is_empty(), "the operand is empty");
    match executor() {
        Executor::Local(backend) => {
            let call = operation.check(operands).map_err(|error| format_err!("{error}"))?;
            let mut output = Tensor::zero::<f32>(shape)?;
            let mut view = output.try_as_plain_ram_mut()?;
            let elements = view.as_slice_mut::<f32>()?;
            ensure!(call.output_len() == elements.len(), "the output has another shape");
            call.execute(backend, elements, &mut || false)
                .map_err(|_stopped| format_err!("nobody stops a local operation"))?;
            Ok(output)
        }
        #[cfg(target_arch = "wasm32")]
        Executor::Host => {
            // Not zeroed: the host writes all of it.
            #[expect(unsafe_code, reason = "memory that the host writes before anything reads it")]
            // SAFETY: f32 has no invalid values, and `execute` fails unless the host has written
            // every element.
            let mut output = unsafe { Tensor::uninitialized::<f32>(shape)? };
            let len = output.len();
            let target = output.as_ptr_mut::<f32>()?;
            #[expect(unsafe_code, reason = "the result is written to the tensor")]
            // SAFETY: the tensor owns `len` elements there, and nothing else refers to them.
            unsafe { crate::arithmetic::host::execute(operation, operands, target, len) }
                .map_err(|error| format_err!("{error}"))?;
            Ok(output)
        }
    }
}
