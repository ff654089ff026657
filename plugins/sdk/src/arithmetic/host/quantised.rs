//! Operations on 8-bit tensors that the host executes.

use guesthouse_arithmetic::{
    Quantisation, QuantisedConvolution, QuantisedEnding, QuantisedOperands, QuantisedOperation,
    Requantisation, Tail,
};

use super::{bits, tail, windows, wit};

/// Execute an operation whose result is u8.
///
/// # Panics
/// The result is f32.
pub(super) fn to_integers(
    operation: &QuantisedOperation,
    operands: QuantisedOperands<'_>,
) -> Vec<u8> {
    let QuantisedOperands { first, second, numbers, offsets, multipliers, .. } = operands;
    let multipliers = bits(multipliers);
    match operation {
        QuantisedOperation::Convolution(QuantisedConvolution {
            geometry,
            padding_value,
            ending: QuantisedEnding::Requantise(output),
        }) => {
            let (windows, output) = (windows(geometry), requantisation(*output));
            let value = *padding_value;
            wit::quantised_convolution(windows, value, output, first, second, offsets, multipliers)
        }
        QuantisedOperation::DepthwiseConvolution(QuantisedConvolution {
            geometry,
            padding_value,
            ending: QuantisedEnding::Requantise(output),
        }) => wit::quantised_depthwise_convolution(
            windows(geometry),
            *padding_value,
            requantisation(*output),
            first,
            second,
            offsets,
            multipliers,
        ),
        QuantisedOperation::MatrixProduct(product) => {
            let output = match product.ending {
                QuantisedEnding::Requantise(output) => requantisation(output),
                QuantisedEnding::Real(_) => unreachable!("{TYPE}"),
            };
            let size = product.size.into();
            wit::quantised_matrix_product(size, output, first, second, offsets, multipliers)
        }
        QuantisedOperation::Sum(sum) => wit::quantised_sum(
            quantisation(sum.left),
            quantisation(sum.right),
            sum.scale,
            requantisation(sum.output),
            first,
            second,
        ),
        QuantisedOperation::Quantise(scale, output) => {
            wit::quantise(*scale, requantisation(*output), bits(numbers))
        }
        _ => unreachable!("{TYPE}"),
    }
}

/// Execute an operation whose result is f32.
///
/// # Panics
/// The result is u8.
pub(super) fn to_floats(
    operation: &QuantisedOperation,
    operands: QuantisedOperands<'_>,
) -> Vec<u32> {
    let QuantisedOperands { first, second, offsets, multipliers, bias, .. } = operands;
    let (multipliers, bias) = (bits(multipliers), bits(bias));
    match operation {
        QuantisedOperation::Convolution(QuantisedConvolution {
            geometry,
            padding_value,
            ending: QuantisedEnding::Real(at_end),
        }) => wit::dequantised_convolution(
            windows(geometry),
            *padding_value,
            tail(at_end),
            first,
            second,
            offsets,
            multipliers,
            bias,
        ),
        QuantisedOperation::DepthwiseConvolution(QuantisedConvolution {
            geometry,
            padding_value,
            ending: QuantisedEnding::Real(at_end),
        }) => wit::dequantised_depthwise_convolution(
            windows(geometry),
            *padding_value,
            tail(at_end),
            first,
            second,
            offsets,
            multipliers,
            bias,
        ),
        QuantisedOperation::MatrixProduct(product) => {
            let at_end: Tail = match product.ending {
                QuantisedEnding::Real(at_end) => at_end,
                QuantisedEnding::Requantise(_) => unreachable!("{TYPE}"),
            };
            let (size, at_end) = (product.size.into(), tail(&at_end));
            wit::dequantised_matrix_product(size, at_end, first, second, offsets, multipliers, bias)
        }
        QuantisedOperation::Dequantise(values) => wit::dequantise(quantisation(*values), first),
        _ => unreachable!("{TYPE}"),
    }
}

/// The reason of a panic that does not happen: the caller has compared the type of the result.
const TYPE: &str = "the result has another type";

fn quantisation(quantisation: Quantisation) -> wit::Quantisation {
    let Quantisation { scale, zero_point } = quantisation;
    wit::Quantisation { scale, zero_point }
}

fn requantisation(requantisation: Requantisation) -> wit::Requantisation {
    let Requantisation { zero_point, least, greatest } = requantisation;
    wit::Requantisation { zero_point, least, greatest }
}
