//! The check of a description against the lengths of its operands, in checked arithmetic.

use super::{
    ElementType, QuantisedCall, QuantisedConvolution, QuantisedEnding, QuantisedOperands,
    QuantisedOperation, QuantisedProduct, Requantisation,
};
use crate::check::{
    Channels, MAX_ELEMENTS, TOO_LARGE, UNEXPECTED, absent, block_size, index, input_len, length,
    optional, output_len, product, windows_in,
};
use crate::{Invalid, K_GROUP, PANEL, WEIGHT_BLOCK};

/// The most products in a sum: no sum of so many products of u8 with i8 overflows.
const MAX_PRODUCTS: u64 = (i32::MAX / (255 * 128)) as u64;

impl QuantisedOperation {
    /// The type of the elements of the output.
    pub fn output_type(&self) -> ElementType {
        match (self.ending(), self) {
            (Some(QuantisedEnding::Requantise(_)), _) => ElementType::U8,
            (Some(QuantisedEnding::Real(_)), _) | (None, Self::Dequantise(_)) => ElementType::F32,
            (None, _) => ElementType::U8,
        }
    }

    /// What follows the sums of products, if there are some.
    pub(crate) fn ending(&self) -> Option<QuantisedEnding> {
        match self {
            Self::Convolution(QuantisedConvolution { ending, .. })
            | Self::DepthwiseConvolution(QuantisedConvolution { ending, .. })
            | Self::MatrixProduct(QuantisedProduct { ending, .. }) => Some(*ending),
            Self::Sum(_) | Self::Quantise(..) | Self::Dequantise(_) => None,
        }
    }

    /// Check that all indexes of the operation lie within its operands. Sizes are at least 1.
    ///
    /// # Errors
    /// The sizes are inconsistent, zero, or so large that an operand or the output would have more
    /// than 2^30 elements, or a sum could overflow.
    pub fn check<'a>(&self, operands: QuantisedOperands<'a>) -> Result<QuantisedCall<'a>, Invalid> {
        let output_len = self.output_len(operands)?;
        Ok(QuantisedCall { operation: *self, operands, output_len })
    }

    /// The number of elements of the output, from the description and the lengths of the operands
    /// alone. It succeeds exactly if [`QuantisedOperation::check`] does.
    ///
    /// # Errors
    /// As for [`QuantisedOperation::check`].
    pub fn output_len(&self, operands: QuantisedOperands<'_>) -> Result<usize, Invalid> {
        let QuantisedOperands { first, second, numbers, offsets, multipliers, bias } = operands;
        let lengths = [
            first.len(),
            second.len(),
            numbers.len(),
            offsets.len(),
            multipliers.len(),
            bias.len(),
        ];
        if lengths.iter().any(|length| *length as u64 > MAX_ELEMENTS) {
            return Err(TOO_LARGE);
        }
        let [_, second_len, numbers_len, endings @ ..] = lengths;
        match self {
            Self::Convolution(description) => convolution(description, operands, Channels::Mixed),
            Self::DepthwiseConvolution(description) => {
                convolution(description, operands, Channels::Separate)
            }
            Self::MatrixProduct(description) => matrix_product(description, operands),
            Self::Sum(sum) => {
                none(&[numbers_len])?;
                none(&endings)?;
                clamp(sum.output)?;
                length(second, first.len() as u64)?;
                Ok(first.len())
            }
            Self::Quantise(_, output) => {
                none(&[first.len(), second_len])?;
                none(&endings)?;
                clamp(*output)?;
                Ok(numbers.len())
            }
            Self::Dequantise(_) => {
                none(&[second_len, numbers_len])?;
                none(&endings)?;
                Ok(first.len())
            }
        }
    }
}

fn convolution(
    description: &QuantisedConvolution,
    operands: QuantisedOperands<'_>,
    channels: Channels,
) -> Result<usize, Invalid> {
    let windows = &description.geometry;
    windows_in(windows.output, windows.input, windows)?;
    let [height, width] = windows.kernel;
    let weights = match channels {
        Channels::Mixed => {
            products(product(&[windows.input_channels, height, width])?)?;
            product(&[
                windows.output_channels.div_ceil(block_size(WEIGHT_BLOCK)),
                windows.input_channels.div_ceil(block_size(K_GROUP)),
                height,
                width,
                block_size(WEIGHT_BLOCK * K_GROUP),
            ])?
        }
        Channels::Separate if windows.input_channels != windows.output_channels => {
            return Err(Invalid("the channels of input and output differ"));
        }
        Channels::Separate => {
            products(product(&windows.kernel)?)?;
            product(&[windows.output_channels, height, width])?
        }
    };
    let output = output_len(windows)?;
    length(operands.first, input_len(windows)?)?;
    length(operands.second, weights)?;
    ending(&description.ending, operands, windows.output_channels)?;
    Ok(index(output))
}

fn matrix_product(
    description: &QuantisedProduct,
    operands: QuantisedOperands<'_>,
) -> Result<usize, Invalid> {
    let [m, n, k] = description.size;
    let output = product(&[m, n])?;
    products(k.into())?;
    length(operands.first, product(&[m, k])?)?;
    let panels = n.div_ceil(block_size(PANEL));
    let groups = k.div_ceil(block_size(K_GROUP));
    length(operands.second, product(&[panels, groups, block_size(PANEL * K_GROUP)])?)?;
    ending(&description.ending, operands, n)?;
    Ok(index(output))
}

/// Check what follows the sums of the given channels or columns.
fn ending(
    ending: &QuantisedEnding,
    operands: QuantisedOperands<'_>,
    channels: u32,
) -> Result<(), Invalid> {
    absent(&[operands.numbers])?;
    length(operands.offsets, channels.into())?;
    length(operands.multipliers, channels.into())?;
    match ending {
        QuantisedEnding::Requantise(output) => {
            absent(&[operands.bias])?;
            clamp(*output)
        }
        QuantisedEnding::Real(_) => optional(operands.bias, channels.into()),
    }
}

fn clamp(output: Requantisation) -> Result<(), Invalid> {
    if output.least <= output.greatest {
        Ok(())
    } else {
        Err(Invalid("the least value is more than the greatest one"))
    }
}

fn products(count: u64) -> Result<(), Invalid> {
    if count <= MAX_PRODUCTS { Ok(()) } else { Err(TOO_LARGE) }
}

fn none(lengths: &[usize]) -> Result<(), Invalid> {
    if lengths.iter().all(|length| *length == 0) { Ok(()) } else { Err(UNEXPECTED) }
}
