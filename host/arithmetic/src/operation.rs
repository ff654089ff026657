//! What an operation computes, without its values. All tensors are dense and row-major unless
//! strides say otherwise; sizes and strides are in elements.

/// What is applied to each element of a result, last: `activation(x) * scale + shift`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tail {
    /// The activation.
    pub activation: Activation,
    /// The factor after the activation.
    pub scale: f32,
    /// The summand after the factor.
    pub shift: f32,
}

impl Tail {
    /// A tail that changes nothing.
    pub const NONE: Self = Self { activation: Activation::Identity, scale: 1.0, shift: 0.0 };
}

/// A function of one element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `x` if it is at least 0, else `slope * x`
    LeakyRelu(f32),
    /// `min(max(x, least), greatest)`
    Clip(f32, f32),
    /// `min(max(slope * x + offset, 0), 1)`
    HardSigmoid(f32, f32),
    /// `x * min(max(x + 3, 0), 6)`; the division by six is the tail's scale
    HardSwish,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `tanh(x)`
    Tanh,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`
    Gelu,
    /// `exp(x)`
    Exp,
    /// `erf(x)`
    Erf,
    /// `sqrt(x)`
    SquareRoot,
    /// `1 / sqrt(x)`
    ReciprocalSquareRoot,
    /// `1 / x`
    Reciprocal,
    /// `x * x`
    Square,
    /// `|x|`
    Absolute,
}

/// A two-dimensional convolution over `[batch, channels, height, width]`. Two-element arrays are
/// height and width. Values outside of the input are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// The number of images.
    pub batch: u32,
    /// The channels of the input.
    pub input_channels: u32,
    /// The channels of the output.
    pub output_channels: u32,
    /// The size of the input.
    pub input: [u32; 2],
    /// The size of the output.
    pub output: [u32; 2],
    /// The size of the kernel.
    pub kernel: [u32; 2],
    /// The distance between neighbouring windows.
    pub stride: [u32; 2],
    /// The zeros before the first row and before the first column.
    pub padding: [u32; 2],
    /// The distance between neighbouring values of a window.
    pub dilation: [u32; 2],
}

/// The transpose of a convolution: every value of the input adds its multiple of the kernel to a
/// window of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deconvolution {
    /// The geometry. `stride`, `padding` and `dilation` are those of the windows in the output.
    pub geometry: Convolution,
}

/// Products of matrices: `output[b0, b1, m, n] = tail(scale * sum over k of left[b0, b1, m, k] *
/// right[b0, b1, k, n] + bias[n] + residual[b0, b1, m, n])`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatrixProduct {
    /// The sizes of the two batch dimensions.
    pub batch: [u32; 2],
    /// `m`, `n` and `k`.
    pub size: [u32; 3],
    /// The strides of the left operand for `b0`, `b1`, `m`, `k`.
    pub left: [u32; 4],
    /// The layout of the right operand.
    pub right: RightOperand,
    /// The strides of the output and of the residual for `b0`, `b1`, `m`; that of `n` is 1. The
    /// dimensions may be in any order, and fill the output without gaps.
    pub output: [u32; 3],
    /// The factor of the sums.
    pub scale: f32,
}

/// The layout of the right operand of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RightOperand {
    /// Strides for `b0`, `b1`, `k`, `n`.
    Strided([u32; 4]),
    /// Packed in panels of [`PANEL`](crate::PANEL) columns (`[n / PANEL][k][PANEL]`, padded with
    /// zeros), the same for all of the batch.
    Packed,
}

/// An element-wise function of two operands with broadcasting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binary {
    /// The function.
    pub function: BinaryFunction,
    /// The shape of the output.
    pub shape: [u32; 4],
    /// The strides of the left operand; 0 repeats it along a dimension.
    pub left: [u32; 4],
    /// The strides of the right operand; 0 repeats it along a dimension.
    pub right: [u32; 4],
}

/// A function of two elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryFunction {
    /// `left + right`
    Add,
    /// `left - right`
    Subtract,
    /// `left * right`
    Multiply,
    /// `left / right`
    Divide,
    /// `max(left, right)`
    Maximum,
    /// `min(left, right)`
    Minimum,
}

/// The softmax of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Softmax {
    /// The elements of a row.
    pub columns: u32,
}

/// The layer normalisation of each row: `(x - mean) / sqrt(variance + epsilon) * gain + bias`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// The elements of a row.
    pub columns: u32,
    /// What is added to the variance.
    pub epsilon: f32,
}

/// The reduction of each row to one element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reduction {
    /// The function.
    pub function: ReductionFunction,
    /// The elements of a row.
    pub columns: u32,
    /// The factor of the result, such as `1 / columns` for a mean.
    pub scale: f32,
}

/// A function of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReductionFunction {
    /// The sum.
    Sum,
    /// The sum of the squares.
    SumOfSquares,
    /// The greatest element.
    Maximum,
    /// The least element.
    Minimum,
}

/// Pooling over the windows of each channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// The function.
    pub function: PoolFunction,
    /// The windows; `output_channels` equals `input_channels`.
    pub geometry: Convolution,
}

/// A function of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolFunction {
    /// The greatest element inside of the input.
    Maximum,
    /// The mean of the elements inside of the input.
    Average,
    /// The sum of the elements divided by the size of the kernel.
    AverageWithPadding,
}

/// An operation and the sizes of its operands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Operands: the input, weights packed by output channel (`[output_channels /
    /// WEIGHT_BLOCK][input_channels * kernel][WEIGHT_BLOCK]`, padded with zeros), optionally a bias
    /// by output channel and a residual of the output's shape, which is added before the tail.
    Convolution(Convolution, Tail),
    /// A convolution in which each channel has a kernel of its own. Operands as for a convolution,
    /// with weights `[channels][kernel]`.
    DepthwiseConvolution(Convolution, Tail),
    /// Operands: left, right, optionally a bias and a residual.
    MatrixProduct(MatrixProduct, Tail),
    /// The tail of each element. Operand: the input.
    Unary(Tail),
    /// Operands: left and right.
    Binary(Binary, Tail),
    /// Operand: the input.
    Softmax(Softmax),
    /// Operands: the input, the gain and the bias by column.
    LayerNorm(LayerNorm),
    /// Operand: the input.
    Reduction(Reduction),
    /// Operand: the input.
    Pool(Pool),
    /// Operands: the input, the weights `[input_channels][output_channels * kernel]` packed as the
    /// right operand of a matrix product, optionally a bias by output channel.
    Deconvolution(Deconvolution, Tail),
}
