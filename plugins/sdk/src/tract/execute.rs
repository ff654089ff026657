//! Executes an operation on tract's tensors: its operands are borrowed, and its result is written
//! to the tensor that is returned.

use guesthouse_arithmetic::{
    ElementType, Operands, QuantisedOperands, QuantisedOperation, QuantisedOutput,
};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

use super::node::Resolved;
use crate::arithmetic::{Executor, executor};

/// Execute the parts of an operation one after the other.
pub(super) fn execute<'a>(
    resolved: &Resolved,
    operands: impl Fn(usize) -> TractResult<Operands<'a>>,
) -> TractResult<Tensor> {
    let Resolved { operation, shape, parts } = resolved;
    if shape.contains(&0) {
        return Tensor::zero::<f32>(shape);
    }
    match executor() {
        Executor::Local(backend) => {
            let mut output = Tensor::zero::<f32>(shape)?;
            let len = part_len(&output, *parts)?;
            let mut view = output.try_as_plain_ram_mut()?;
            for (part, elements) in view.as_slice_mut::<f32>()?.chunks_exact_mut(len).enumerate() {
                let operands = operands(part)?;
                ensure!(!operands.first.is_empty(), "the operand is empty");
                let call = operation.check(operands).map_err(|error| format_err!("{error}"))?;
                ensure!(call.output_len() == len, "the output has another shape");
                call.execute(backend, elements, &mut || false)
                    .map_err(|_stopped| format_err!("nobody stops a local operation"))?;
            }
            Ok(output)
        }
        #[cfg(target_arch = "wasm32")]
        Executor::Host => {
            // Not zeroed: the host writes all of it.
            #[expect(unsafe_code, reason = "memory that the host writes before anything reads it")]
            // SAFETY: f32 has no invalid values, and the loop fails unless the host has written
            // every element.
            let mut output = unsafe { Tensor::uninitialized::<f32>(shape)? };
            let len = part_len(&output, *parts)?;
            for part in 0..*parts {
                let operands = operands(part)?;
                ensure!(!operands.first.is_empty(), "the operand is empty");
                #[expect(unsafe_code, reason = "the result is written to the tensor")]
                // SAFETY: the tensor owns `parts` times `len` elements, and nothing else refers to
                // them.
                unsafe {
                    let target = output.as_ptr_mut::<f32>()?.add(part * len);
                    crate::arithmetic::host::execute(operation, operands, target, len)
                }
                .map_err(|error| format_err!("{error}"))?;
            }
            Ok(output)
        }
    }
}

/// The elements of one of so many equal parts.
fn part_len(output: &Tensor, parts: usize) -> TractResult<usize> {
    let len = output.len() / parts.max(1);
    ensure!(len > 0 && len * parts == output.len(), "the output has other parts");
    Ok(len)
}

/// Execute an operation on 8-bit tensors; the result has this shape.
pub(super) fn execute_quantised(
    operation: &QuantisedOperation,
    operands: QuantisedOperands<'_>,
    shape: &[usize],
) -> TractResult<Tensor> {
    let datum_type = match operation.output_type() {
        ElementType::U8 => u8::datum_type(),
        ElementType::F32 => f32::datum_type(),
    };
    if shape.contains(&0) {
        return Tensor::zero_dt(datum_type, shape);
    }
    match executor() {
        Executor::Local(backend) => {
            let call = operation.check(operands).map_err(|error| format_err!("{error}"))?;
            let mut output = Tensor::zero_dt(datum_type, shape)?;
            let mut view = output.try_as_plain_ram_mut()?;
            let elements = match operation.output_type() {
                ElementType::U8 => QuantisedOutput::U8(view.as_slice_mut()?),
                ElementType::F32 => QuantisedOutput::F32(view.as_slice_mut()?),
            };
            ensure!(call.output_len() == elements.len(), "the output has another shape");
            call.execute(backend, elements, &mut || false)
                .map_err(|_stopped| format_err!("nobody stops a local operation"))?;
            Ok(output)
        }
        #[cfg(target_arch = "wasm32")]
        Executor::Host => {
            use crate::arithmetic::host::{execute_to_floats, execute_to_integers};
            // Not zeroed: the host writes all of it.
            #[expect(unsafe_code, reason = "memory that the host writes before anything reads it")]
            // SAFETY: neither type has invalid values, and the call fails unless the host has
            // written every element.
            let mut output = unsafe { Tensor::uninitialized_dt(datum_type, shape)? };
            let len = output.len();
            #[expect(unsafe_code, reason = "the result is written to the tensor")]
            // SAFETY: the tensor owns `len` elements of the type, and nothing else refers to them.
            unsafe {
                match operation.output_type() {
                    ElementType::U8 => {
                        execute_to_integers(operation, operands, output.as_ptr_mut()?, len)
                    }
                    ElementType::F32 => {
                        execute_to_floats(operation, operands, output.as_ptr_mut()?, len)
                    }
                }
            }
            .map_err(|error| format_err!("{error}"))?;
            Ok(output)
        }
    }
}
