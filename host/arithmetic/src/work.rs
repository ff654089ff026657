//! How much work a call is.

use crate::{Call, Convolution, Operation};

impl Call<'_> {
    /// About how many multiplications the call takes, or steps that take as long: to compare with
    /// the cost of computing parts of it on other threads.
    pub fn work(&self) -> u64 {
        let output = self.output_len as u64;
        let window = |windows: &Convolution| product(windows.kernel);
        let steps = match &self.operation {
            Operation::Convolution(windows, _) => {
                window(windows).saturating_mul(windows.input_channels.into())
            }
            Operation::DepthwiseConvolution(windows, _) => window(windows),
            Operation::Pool(pool) => window(&pool.geometry),
            Operation::Deconvolution(deconvolution, _) => {
                let windows = &deconvolution.geometry;
                let inputs = u64::from(windows.input_channels);
                // Every window has a value of the input for each of the output's.
                let overlap = window(windows).div_ceil(product(windows.stride).max(1));
                inputs.saturating_mul(overlap)
            }
            Operation::MatrixProduct(product, _) => product.size[2].into(),
            Operation::Reduction(reduction) => reduction.columns.into(),
            Operation::Unary(_)
            | Operation::Binary(..)
            | Operation::Softmax(_)
            | Operation::LayerNorm(_) => 1,
        };
        output.saturating_mul(steps)
    }
}

fn product([height, width]: [u32; 2]) -> u64 {
    u64::from(height) * u64::from(width)
}
