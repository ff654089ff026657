//! Operations that the host executes.
//!
//! Operands are passed where they are. The host writes a result to memory that it requests from
//! [`result`](super::result), which gives it the memory of the tensor that waits for the result.

mod quantised;

use std::mem;

use guesthouse_arithmetic::{
    Activation, Binary, BinaryFunction, Convolution, ElementType, MatrixProduct, Operands,
    Operation, PoolFunction, QuantisedOperands, QuantisedOperation, ReductionFunction,
    RightOperand, Tail,
};

use super::result;
use crate::bindings::guesthouse::model::arithmetic as wit;

/// Whether the host executes operations for this version.
pub(super) fn is_granted() -> bool {
    wit::granted()
}

/// Execute the operation and write its result to `target`.
///
/// # Errors
/// The result does not have `len` elements.
///
/// # Safety
/// `target` is valid for writes of `len` elements, and nothing else refers to them.
#[expect(unsafe_code, reason = "the host writes the result to the memory that waits for it")]
pub(crate) unsafe fn execute(
    operation: &Operation,
    operands: Operands<'_>,
    target: *mut f32,
    len: usize,
) -> Result<(), &'static str> {
    // SAFETY: as promised to this function; `call` calls the host once, for a list of u32.
    unsafe { write_result(target.cast::<u32>(), len, || call(operation, operands)) }
}

/// Execute an operation on 8-bit tensors whose result is u8, and write it to `target`.
///
/// # Errors
/// As for [`execute`], or the result of the operation is f32.
///
/// # Safety
/// As for [`execute`].
#[expect(unsafe_code, reason = "the host writes the result to the memory that waits for it")]
pub(crate) unsafe fn execute_to_integers(
    operation: &QuantisedOperation,
    operands: QuantisedOperands<'_>,
    target: *mut u8,
    len: usize,
) -> Result<(), &'static str> {
    if operation.output_type() != ElementType::U8 {
        return Err("the result of the operation is f32");
    }
    // SAFETY: as promised to this function; `to_integers` calls the host once, for a list of u8.
    unsafe { write_result(target, len, || quantised::to_integers(operation, operands)) }
}

/// Execute an operation on 8-bit tensors whose result is f32, and write it to `target`.
///
/// # Errors
/// As for [`execute`], or the result of the operation is u8.
///
/// # Safety
/// As for [`execute`].
#[expect(unsafe_code, reason = "the host writes the result to the memory that waits for it")]
pub(crate) unsafe fn execute_to_floats(
    operation: &QuantisedOperation,
    operands: QuantisedOperands<'_>,
    target: *mut f32,
    len: usize,
) -> Result<(), &'static str> {
    if operation.output_type() != ElementType::F32 {
        return Err("the result of the operation is u8");
    }
    // SAFETY: as promised to this function; `to_floats` calls the host once, for a list of u32.
    unsafe { write_result(target.cast::<u32>(), len, || quantised::to_floats(operation, operands)) }
}

/// Write the list that `call` receives from the host to `target`.
///
/// # Errors
/// The list does not have `len` elements.
///
/// # Safety
/// `target` is valid for writes of `len` elements, and nothing else refers to them. `call` calls the
/// host once, for a list of such elements.
#[expect(unsafe_code, reason = "the host writes the result to the memory that waits for it")]
unsafe fn write_result<E: Copy>(
    target: *mut E,
    len: usize,
    call: impl FnOnce() -> Vec<E>,
) -> Result<(), &'static str> {
    // SAFETY: as promised to this function.
    let result = unsafe {
        result::redirect(target, len);
        let result = call();
        result::take_back();
        result
    };
    if result.len() != len {
        // Its memory may be the tensor's, so that it must not be freed here.
        mem::forget(result);
        return Err("the host's result has another size");
    }
    if result.as_ptr() == target.cast_const() {
        // The vector refers to memory that it does not own: it must not free it.
        mem::forget(result);
    } else {
        // SAFETY: both have `len` elements, and the vector owns memory of its own.
        unsafe { target.copy_from_nonoverlapping(result.as_ptr(), len) };
    }
    Ok(())
}

fn call(operation: &Operation, operands: Operands<'_>) -> Vec<u32> {
    let Operands { first, second, bias, residual } = operands;
    let [first, second, bias, residual] = [first, second, bias, residual].map(bits);
    match operation {
        Operation::Convolution(geometry, at_end) => {
            wit::convolution(windows(geometry), tail(at_end), first, second, bias, residual)
        }
        Operation::DepthwiseConvolution(geometry, at_end) => {
            let windows = windows(geometry);
            wit::depthwise_convolution(windows, tail(at_end), first, second, bias, residual)
        }
        Operation::Deconvolution(deconvolution, at_end) => {
            let windows = windows(&deconvolution.geometry);
            wit::deconvolution(windows, tail(at_end), first, second, bias)
        }
        Operation::MatrixProduct(product, at_end) => {
            wit::matrix_product(products(product), tail(at_end), first, second, bias, residual)
        }
        Operation::Unary(at_end) => wit::unary(tail(at_end), first),
        Operation::Binary(binary, at_end) => {
            let function = binary_function(binary.function);
            wit::binary(function, broadcast(binary), tail(at_end), first, second)
        }
        Operation::Softmax(softmax) => wit::softmax(softmax.columns, first),
        Operation::LayerNorm(norm) => {
            wit::layer_norm(norm.columns, norm.epsilon, first, second, bias)
        }
        Operation::Reduction(reduction) => {
            let function = match reduction.function {
                ReductionFunction::Sum => wit::ReductionFunction::Sum,
                ReductionFunction::SumOfSquares => wit::ReductionFunction::SumOfSquares,
                ReductionFunction::Maximum => wit::ReductionFunction::Maximum,
                ReductionFunction::Minimum => wit::ReductionFunction::Minimum,
            };
            wit::reduction(function, reduction.columns, reduction.scale, first)
        }
        Operation::Pool(pool) => {
            let function = match pool.function {
                PoolFunction::Maximum => wit::PoolFunction::Maximum,
                PoolFunction::Average => wit::PoolFunction::Average,
                PoolFunction::AverageWithPadding => wit::PoolFunction::AverageWithPadding,
            };
            wit::pool(function, windows(&pool.geometry), first)
        }
    }
}

/// The bit patterns of the elements.
#[expect(unsafe_code, reason = "a view of f32 as u32")]
fn bits(elements: &[f32]) -> &[u32] {
    // SAFETY: both types have the same size and alignment, and every pattern is a u32.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), elements.len()) }
}

fn windows(geometry: &Convolution) -> wit::Windows {
    wit::Windows {
        batch: geometry.batch,
        input_channels: geometry.input_channels,
        output_channels: geometry.output_channels,
        input: geometry.input.into(),
        output: geometry.output.into(),
        kernel: geometry.kernel.into(),
        stride: geometry.stride.into(),
        padding: geometry.padding.into(),
        dilation: geometry.dilation.into(),
    }
}

fn products(product: &MatrixProduct) -> wit::Products {
    wit::Products {
        batch: product.batch.into(),
        size: product.size.into(),
        left: product.left.into(),
        right: match product.right {
            RightOperand::Strided(strides) => wit::RightOperand::Strided(strides.into()),
            RightOperand::Packed => wit::RightOperand::Packed,
        },
        output: product.output.into(),
        scale: product.scale,
    }
}

fn broadcast(binary: &Binary) -> wit::Broadcast {
    wit::Broadcast {
        shape: binary.shape.into(),
        left: binary.left.into(),
        right: binary.right.into(),
    }
}

fn binary_function(function: BinaryFunction) -> wit::BinaryFunction {
    match function {
        BinaryFunction::Add => wit::BinaryFunction::Add,
        BinaryFunction::Subtract => wit::BinaryFunction::Subtract,
        BinaryFunction::Multiply => wit::BinaryFunction::Multiply,
        BinaryFunction::Divide => wit::BinaryFunction::Divide,
        BinaryFunction::Maximum => wit::BinaryFunction::Maximum,
        BinaryFunction::Minimum => wit::BinaryFunction::Minimum,
    }
}

fn tail(tail: &Tail) -> wit::Tail {
    let activation = match tail.activation {
        Activation::Identity => wit::Activation::Identity,
        Activation::Relu => wit::Activation::Relu,
        Activation::LeakyRelu(slope) => wit::Activation::LeakyRelu(slope),
        Activation::Clip(least, greatest) => wit::Activation::Clip((least, greatest)),
        Activation::HardSigmoid(slope, offset) => wit::Activation::HardSigmoid((slope, offset)),
        Activation::HardSwish => wit::Activation::HardSwish,
        Activation::Sigmoid => wit::Activation::Sigmoid,
        Activation::Silu => wit::Activation::Silu,
        Activation::Tanh => wit::Activation::Tanh,
        Activation::Gelu => wit::Activation::Gelu,
        Activation::Exp => wit::Activation::Exp,
        Activation::Erf => wit::Activation::Erf,
        Activation::SquareRoot => wit::Activation::SquareRoot,
        Activation::ReciprocalSquareRoot => wit::Activation::ReciprocalSquareRoot,
        Activation::Reciprocal => wit::Activation::Reciprocal,
        Activation::Square => wit::Activation::Square,
        Activation::Absolute => wit::Activation::Absolute,
    };
    wit::Tail { activation, scale: tail.scale, shift: tail.shift }
}
