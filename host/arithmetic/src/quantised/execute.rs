//! From a checked call on 8-bit tensors to its kernels.

use super::{
    Quantisation, QuantisedCall, QuantisedConvolution, QuantisedEnding, QuantisedOperands,
    QuantisedOperation, QuantisedOutput, QuantisedProduct, QuantisedSum, Requantisation,
};
use crate::functions::apply_tail;
use crate::progress::Progress;
use crate::simd::scalar::Scalar;
use crate::windows::Windows;
use crate::{Backend, K_GROUP, PANEL, Stopped, WEIGHT_BLOCK};

/// Compute the output of a call on an available backend.
pub(crate) fn execute(
    call: &QuantisedCall<'_>,
    backend: Backend,
    mut output: QuantisedOutput<'_>,
    stopped: &mut dyn FnMut() -> bool,
) -> Result<(), Stopped> {
    let mut progress = Progress::new(backend, stopped);
    let progress = &mut progress;
    let operands = call.operands;
    let output = &mut output;
    match &call.operation {
        QuantisedOperation::Convolution(description) => {
            convolution(description, operands, false, output, progress)
        }
        QuantisedOperation::DepthwiseConvolution(description) => {
            convolution(description, operands, true, output, progress)
        }
        QuantisedOperation::MatrixProduct(description) => {
            matrix_product(description, operands, output, progress)
        }
        QuantisedOperation::Sum(sum) => {
            let pairs = operands.first.iter().zip(operands.second);
            elements(pairs, output, progress, |(left, right)| add(sum, *left, *right))
        }
        QuantisedOperation::Quantise(scale, requantisation) => {
            let quantise = |number: &f32| requantise(*requantisation, number / scale);
            elements(operands.numbers.iter(), output, progress, quantise)
        }
        QuantisedOperation::Dequantise(quantisation) => {
            dequantise(quantisation, operands.first, output, progress)
        }
    }
}

fn convolution(
    description: &QuantisedConvolution,
    operands: QuantisedOperands<'_>,
    separate: bool,
    output: &mut QuantisedOutput<'_>,
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let windows = Windows::new(&description.geometry);
    let ([height, width], [inputs, outputs]) = (windows.output, windows.channels);
    let plane = windows.input[0] * windows.input[1];
    let taps = windows.kernel[0] * windows.kernel[1];
    for index in 0..output.len() {
        let (x, y, channel) = (index % width, index / width % height, index / width / height);
        let (image, channel) = (channel / outputs, channel % outputs);
        let channels = if separate { channel..channel + 1 } else { 0..inputs };
        let mut sum = 0_i32;
        for input in channels {
            progress.spend(taps)?;
            let values = &operands.first[(image * inputs + input) * plane..][..plane];
            for tap in 0..taps {
                let (ky, kx) = (tap / windows.kernel[1], tap % windows.kernel[1]);
                let value = match (windows.position(0, y, ky), windows.position(1, x, kx)) {
                    (Some(row), Some(column)) => values[row * windows.input[1] + column],
                    _ => description.padding_value,
                };
                let place = if separate {
                    channel * taps + tap
                } else {
                    let groups = inputs.div_ceil(K_GROUP);
                    let group = channel / WEIGHT_BLOCK * groups + input / K_GROUP;
                    let row = (group * taps + tap) * WEIGHT_BLOCK + channel % WEIGHT_BLOCK;
                    row * K_GROUP + input % K_GROUP
                };
                sum += i32::from(value) * i32::from(operands.second[place].cast_signed());
            }
        }
        finish(&description.ending, operands, [index, channel], sum, output);
    }
    Ok(())
}

fn matrix_product(
    description: &QuantisedProduct,
    operands: QuantisedOperands<'_>,
    output: &mut QuantisedOutput<'_>,
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let [_, n, k] = description.size.map(|size| size as usize);
    for index in 0..output.len() {
        let (row, column) = (index / n, index % n);
        let mut sum = 0_i32;
        for (k_group, values) in operands.first[row * k..][..k].chunks(K_GROUP).enumerate() {
            progress.spend(K_GROUP)?;
            let group = column / PANEL * k.div_ceil(K_GROUP) + k_group;
            let weights = &operands.second[(group * PANEL + column % PANEL) * K_GROUP..];
            for (value, weight) in values.iter().zip(weights) {
                sum += i32::from(*value) * i32::from(weight.cast_signed());
            }
        }
        finish(&description.ending, operands, [index, column], sum, output);
    }
    Ok(())
}

/// What follows the sum of an element of the given channel.
#[expect(clippy::cast_precision_loss, reason = "sums are rounded")]
fn finish(
    ending: &QuantisedEnding,
    operands: QuantisedOperands<'_>,
    [index, channel]: [usize; 2],
    sum: i32,
    output: &mut QuantisedOutput<'_>,
) {
    let sum = sum.wrapping_add(operands.offsets[channel]) as f32;
    let multiplier = operands.multipliers[channel];
    match (ending, output) {
        (QuantisedEnding::Requantise(requantisation), QuantisedOutput::U8(output)) => {
            output[index] = requantise(*requantisation, sum * multiplier);
        }
        (QuantisedEnding::Real(tail), QuantisedOutput::F32(output)) => {
            let bias = operands.bias.get(channel).copied().unwrap_or(0.0);
            output[index] = sum.mul_add(multiplier, bias);
            apply_tail(Scalar::<4>, tail, &mut output[index..=index], 0, [1, 1]);
        }
        _ => unreachable!("the call has checked the type of its output"),
    }
}

fn requantise(output: Requantisation, number: f32) -> u8 {
    let zero_point = f32::from(output.zero_point);
    let bounds = [output.least, output.greatest].map(|bound| f32::from(bound) - zero_point);
    to_u8(clamp(number, bounds).round_ties_even() + zero_point)
}

fn add(sum: &QuantisedSum, left: u8, right: u8) -> u8 {
    let factors = [sum.left.scale / sum.scale, sum.right.scale / sum.scale];
    let zero_points = factors[0]
        .mul_add(sum.left.zero_point.into(), factors[1] * f32::from(sum.right.zero_point));
    let constant = f32::from(sum.output.zero_point) - zero_points;
    let number = factors[0].mul_add(left.into(), factors[1].mul_add(right.into(), constant));
    let bounds = [sum.output.least, sum.output.greatest].map(f32::from);
    to_u8(clamp(number, bounds).round_ties_even())
}

/// The number between the bounds, or the lower one of what is no number.
fn clamp(number: f32, [least, greatest]: [f32; 2]) -> f32 {
    let number = if number > least { number } else { least };
    if number < greatest { number } else { greatest }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is an integer")]
fn to_u8(number: f32) -> u8 {
    number as u8
}

/// A function of each element to u8.
fn elements<T>(
    elements: impl Iterator<Item = T>,
    output: &mut QuantisedOutput<'_>,
    progress: &mut Progress<'_>,
    function: impl Fn(T) -> u8,
) -> Result<(), Stopped> {
    let QuantisedOutput::U8(output) = output else {
        unreachable!("the call has checked the type of its output");
    };
    for (element, output) in elements.zip(output.iter_mut()) {
        progress.spend(1)?;
        *output = function(element);
    }
    Ok(())
}

fn dequantise(
    quantisation: &Quantisation,
    values: &[u8],
    output: &mut QuantisedOutput<'_>,
    progress: &mut Progress<'_>,
) -> Result<(), Stopped> {
    let QuantisedOutput::F32(output) = output else {
        unreachable!("the call has checked the type of its output");
    };
    for (value, output) in values.iter().zip(output.iter_mut()) {
        progress.spend(1)?;
        let value = f32::from(*value) - f32::from(quantisation.zero_point);
        *output = value * quantisation.scale;
    }
    Ok(())
}
