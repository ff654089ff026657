//! From a checked call to the kernels of a backend.

use crate::convolution::ConvolutionKernel;
use crate::deconvolution::DeconvolutionKernel;
use crate::elementwise::{BinaryKernel, unary};
use crate::planes::{PlaneKernel, WeightedSum};
use crate::pool::pool;
use crate::products::ProductKernel;
use crate::progress::Progress;
use crate::rows::{RowFunction, RowKernel};
use crate::simd::Simd;
use crate::simd::scalar::Scalar;
use crate::windows::Windows;
use crate::{Backend, Call, Operation, Stopped};

/// The reason of a panic that does not happen: [`Call::execute`] has checked it.
pub(crate) const AVAILABLE: &str = "the backend is available";

/// Compute the output of a call on an available backend.
pub(crate) fn execute(
    call: &Call<'_>,
    backend: Backend,
    output: &mut [f32],
    stopped: &mut dyn FnMut() -> bool,
) -> Result<(), Stopped> {
    let mut progress = Progress::new(backend, stopped);
    let progress = &mut progress;
    match backend {
        #[cfg(target_arch = "x86_64")]
        Backend::Avx512 => {
            let simd = crate::simd::avx512::Avx512::new().expect(AVAILABLE);
            execute_with(simd, call, output, progress)
        }
        #[cfg(target_arch = "x86_64")]
        Backend::Avx2 => {
            let simd = crate::simd::avx2::Avx2::new().expect(AVAILABLE);
            execute_with(simd, call, output, progress)
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

fn execute_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    output: &mut [f32],
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let operands = call.operands;
    match &call.operation {
        Operation::Convolution(description, tail) => {
            simd.call(ConvolutionKernel::new(description, tail, operands, output, progress))
        }
        Operation::MatrixProduct(description, tail) => {
            simd.call(ProductKernel { description, tail, operands, output, progress })
        }
        Operation::DepthwiseConvolution(description, tail) => {
            let (windows, window) = (Windows::new(description), WeightedSum);
            simd.call(PlaneKernel { windows, window, tail, operands, output, progress })
        }
        Operation::Unary(tail) => unary(simd, tail, operands.first, output, progress),
        Operation::Binary(description, tail) => {
            simd.call(BinaryKernel { description, tail, operands, output, progress })
        }
        Operation::Softmax(softmax) => {
            let (input, function) = (operands.first, RowFunction::Softmax);
            simd.call(RowKernel { function, columns: softmax.columns, input, output, progress })
        }
        Operation::LayerNorm(norm) => {
            let (input, function) = (operands.first, RowFunction::LayerNorm(norm, operands));
            simd.call(RowKernel { function, columns: norm.columns, input, output, progress })
        }
        Operation::Reduction(reduction) => {
            let (input, function) = (operands.first, RowFunction::Reduction(reduction));
            simd.call(RowKernel { function, columns: reduction.columns, input, output, progress })
        }
        Operation::Pool(description) => pool(simd, description, operands, output, progress),
        Operation::Deconvolution(description, tail) => {
            let windows = Windows::new(&description.geometry);
            simd.call(DeconvolutionKernel { windows, tail, operands, output, progress })
        }
    }
}
