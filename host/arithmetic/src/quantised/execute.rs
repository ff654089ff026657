//! From a checked call on 8-bit tensors to the kernels of a backend.

use super::convolution::ConvolutionKernel;
use super::depthwise::DepthwiseKernel;
use super::elementwise::{DequantiseKernel, Quotient, Sum, ToU8Kernel};
use super::products::ProductKernel;
use super::simd::IntegerSimd;
use super::target::{Scales, Target, ToF32, ToU8};
use super::{
    QuantisedCall, QuantisedConvolution, QuantisedEnding, QuantisedOperation, QuantisedOutput,
};
use crate::execute::AVAILABLE;
use crate::progress::Progress;
use crate::simd::scalar::Scalar;
use crate::windows::Windows;
use crate::{Backend, Stopped};

/// The reason of a panic that does not happen: the call has checked it.
const TYPE: &str = "the output has the operation's type";

/// Compute the output of a call on an available backend.
pub(crate) fn execute(
    call: &QuantisedCall<'_>,
    backend: Backend,
    output: QuantisedOutput<'_>,
    stopped: &mut dyn FnMut() -> bool,
) -> Result<(), Stopped> {
    let mut progress = Progress::new(backend, stopped);
    let progress = &mut progress;
    match backend {
        #[cfg(target_arch = "x86_64")]
        Backend::Avx512 | Backend::Avx2 => {
            // Processors with AVX-512 but without its sums of products have AVX2.
            let vnni = super::simd::vnni::Vnni::new().filter(|_| backend == Backend::Avx512);
            match vnni {
                Some(simd) => execute_with(simd, call, output, progress),
                None => {
                    let simd = crate::simd::avx2::Avx2::new().expect(AVAILABLE);
                    execute_with(simd, call, output, progress)
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        Backend::Neon => {
            let simd = crate::simd::neon::Neon::new().expect(AVAILABLE);
            execute_with(simd, call, output, progress)
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        Backend::Simd128 => {
            let simd = crate::simd::simd128::Simd128::new().expect(AVAILABLE);
            execute_with(simd, call, output, progress)
        }
        Backend::Scalar => execute_with(Scalar::<4>, call, output, progress),
        _ => unreachable!("{AVAILABLE}"),
    }
}

fn execute_with<I: IntegerSimd>(
    simd: I,
    call: &QuantisedCall<'_>,
    output: QuantisedOutput<'_>,
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let operands = call.operands;
    match (&call.operation, output) {
        (QuantisedOperation::Sum(sum), QuantisedOutput::U8(output)) => {
            let function = Sum::new(sum, [operands.first, operands.second]);
            let target = ToU8::shifted(sum.output);
            simd.call(ToU8Kernel { function, target, output, progress })
        }
        (QuantisedOperation::Quantise(scale, requantisation), QuantisedOutput::U8(output)) => {
            let function = Quotient { scale: *scale, numbers: operands.numbers };
            let target = ToU8::new(*requantisation);
            simd.call(ToU8Kernel { function, target, output, progress })
        }
        (QuantisedOperation::Dequantise(quantisation), QuantisedOutput::F32(output)) => {
            let (quantisation, values) = (*quantisation, operands.first);
            simd.call(DequantiseKernel { quantisation, values, output, progress })
        }
        (operation, output) => match (operation.ending().expect(TYPE), output) {
            (QuantisedEnding::Requantise(requantisation), QuantisedOutput::U8(output)) => {
                products(simd, call, ToU8::new(requantisation), output, progress)
            }
            (QuantisedEnding::Real(tail), QuantisedOutput::F32(output)) => {
                products(simd, call, ToF32 { tail }, output, progress)
            }
            _ => unreachable!("{TYPE}"),
        },
    }
}

/// The operations of sums of products.
fn products<I: IntegerSimd, T: Target>(
    simd: I,
    call: &QuantisedCall<'_>,
    target: T,
    output: &mut [T::Element],
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let operands = call.operands;
    let scales = Scales {
        offsets: operands.offsets,
        multipliers: operands.multipliers,
        bias: operands.bias,
    };
    let (input, weights) = (operands.first, operands.second);
    let parts = |description: &QuantisedConvolution| {
        (Windows::new(&description.geometry), description.padding_value)
    };
    match &call.operation {
        QuantisedOperation::Convolution(description) => {
            let (windows, padding_value) = parts(description);
            simd.call(ConvolutionKernel {
                windows,
                padding_value,
                input,
                weights,
                scales,
                target,
                output,
                progress,
            })
        }
        QuantisedOperation::DepthwiseConvolution(description) => {
            let (windows, padding_value) = parts(description);
            simd.call(DepthwiseKernel {
                windows,
                padding_value,
                input,
                weights,
                scales,
                target,
                output,
                progress,
            })
        }
        QuantisedOperation::MatrixProduct(description) => simd.call(ProductKernel {
            description,
            left: input,
            right: weights,
            scales,
            target,
            output,
            progress,
        }),
        _ => unreachable!("other operations have no sums of products"),
    }
}
