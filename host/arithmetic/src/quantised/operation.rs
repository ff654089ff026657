//! What an operation on 8-bit tensors computes, without its values. All tensors are dense and
//! row-major; sizes are in elements.

use crate::{Convolution, Tail};

/// The type of the elements of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// One byte.
    U8,
    /// Four bytes.
    F32,
}

impl ElementType {
    /// The bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F32 => 4,
        }
    }
}

/// The real number of a u8: `(value - zero_point) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantisation {
    /// The distance between the numbers of neighbouring values.
    pub scale: f32,
    /// The value of the number 0.
    pub zero_point: u8,
}

/// How a real number in units of the output's scale becomes a u8: the number is clamped to
/// `least - zero_point` and `greatest - zero_point`, rounded to the nearest integer, of two to the
/// even one, and the zero point is added. What is no number becomes `least`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requantisation {
    /// The value of the number 0.
    pub zero_point: u8,
    /// The least value, at most `greatest`.
    pub least: u8,
    /// The greatest value.
    pub greatest: u8,
}

impl Requantisation {
    /// All values, and the given one for the number 0.
    pub const fn new(zero_point: u8) -> Self {
        Self { zero_point, least: u8::MIN, greatest: u8::MAX }
    }
}

/// What follows the sums of products of a channel or column: `real = (sum + offset) * multiplier`,
/// in which the sum with the offset wraps around in i32 and is rounded to f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QuantisedEnding {
    /// The output is u8: `real`, requantised. There is no bias.
    Requantise(Requantisation),
    /// The output is f32: `tail(real + bias)`, in which `real + bias` is rounded once.
    Real(Tail),
}

/// A convolution of u8 with i8, mixed or by channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantisedConvolution {
    /// The geometry.
    pub geometry: Convolution,
    /// The value around the input. With the input's zero point, the sum of each output differs
    /// from the sum of `(value - zero_point) * weight` by the zero point times the sum of the
    /// channel's weights; offsets contain its opposite.
    pub padding_value: u8,
    /// What follows the sums.
    pub ending: QuantisedEnding,
}

/// A product of a u8 matrix `[m, k]` with an i8 matrix `[k, n]`; a batch is part of `m`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantisedProduct {
    /// `m`, `n` and `k`.
    pub size: [u32; 3],
    /// What follows the sums.
    pub ending: QuantisedEnding,
}

/// The sum of two u8 tensors. With `left_factor = left.scale / scale` and `right_factor =
/// right.scale / scale`, an element is `left_factor * left + (right_factor * right + constant)`,
/// clamped to `least` and `greatest` and rounded to the nearest integer, of two to the even one.
/// The constant is `zero_point - (left_factor * left.zero_point + (right_factor *
/// right.zero_point))`. In each pair of parentheses, and in the whole, a product is added without
/// being rounded on its own; a product alone, quotients and the difference are rounded. These are
/// the steps of onnxruntime, whose fused addition rounds after the zero point is added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantisedSum {
    /// The left operand.
    pub left: Quantisation,
    /// The right operand.
    pub right: Quantisation,
    /// The scale of the output.
    pub scale: f32,
    /// The zero point of the output and its clamp.
    pub output: Requantisation,
}

/// An operation on 8-bit tensors and the sizes of its operands. Weights are i8 as bit patterns.
/// Where there are offsets and multipliers, they are one by output channel or column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QuantisedOperation {
    /// Operands: the input, weights packed by [`pack_quantised_weights`], offsets, multipliers, and
    /// for an f32 output optionally a bias by output channel. A sum has at most 65,793 products.
    ///
    /// [`pack_quantised_weights`]: crate::pack_quantised_weights
    Convolution(QuantisedConvolution),
    /// A convolution in which each channel has a kernel of its own. Operands as for a convolution,
    /// with weights `[channels][kernel]`.
    DepthwiseConvolution(QuantisedConvolution),
    /// Operands: left, right packed by [`pack_quantised_matrix`], offsets, multipliers, and for an
    /// f32 output optionally a bias by column. A sum has at most 65,793 products.
    ///
    /// [`pack_quantised_matrix`]: crate::pack_quantised_matrix
    MatrixProduct(QuantisedProduct),
    /// Operands: left and right, of equal length.
    Sum(QuantisedSum),
    /// The u8 of each number: `number / scale`, requantised. Operand: the numbers.
    Quantise(f32, Requantisation),
    /// The number of each u8. Operand: the values.
    Dequantise(Quantisation),
}
