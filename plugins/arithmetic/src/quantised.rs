//! Calls on 8-bit integers.

use guesthouse_guest::bindings::guesthouse::model::arithmetic::{
    self, Quantisation, Requantisation, Windows,
};

use crate::call::{Operands, Words, numbers};

/// Executes a call, and returns the bytes of its result; `None` if it is not understood.
pub(crate) fn execute(call: &str, operands: &Operands) -> Option<Vec<u8>> {
    to_integers(call, operands).or_else(|| to_floats(call, operands).map(|floats| bytes(&floats)))
}

fn to_integers(call: &str, operands: &Operands) -> Option<Vec<u8>> {
    let Operands { first, second, .. } = operands;
    let (offsets, multipliers) = (integers(&operands.offsets), numbers(&operands.residual));
    let mut words = Words(call.split_whitespace());
    Some(match words.word()? {
        "quantised-convolution" => {
            let (windows, padding, output) = words.quantised_windows()?;
            arithmetic::quantised_convolution(
                windows,
                padding,
                output,
                first,
                second,
                &offsets,
                &multipliers,
            )
        }
        "quantised-depthwise-convolution" => {
            let (windows, padding, output) = words.quantised_windows()?;
            arithmetic::quantised_depthwise_convolution(
                windows,
                padding,
                output,
                first,
                second,
                &offsets,
                &multipliers,
            )
        }
        "quantised-matrix-product" => {
            let (size, output) = (words.triple()?, words.requantisation()?);
            arithmetic::quantised_matrix_product(
                size,
                output,
                first,
                second,
                &offsets,
                &multipliers,
            )
        }
        "quantised-sum" => {
            let (left, right) = (words.quantisation()?, words.quantisation()?);
            let (scale, output) = (words.next()?, words.requantisation()?);
            arithmetic::quantised_sum(left, right, scale, output, first, second)
        }
        "quantise" => arithmetic::quantise(words.next()?, words.requantisation()?, &numbers(first)),
        _ => return None,
    })
}

fn to_floats(call: &str, operands: &Operands) -> Option<Vec<u32>> {
    let Operands { first, second, .. } = operands;
    let (offsets, multipliers) = (integers(&operands.offsets), numbers(&operands.residual));
    let bias = numbers(&operands.bias);
    let mut words = Words(call.split_whitespace());
    Some(match words.word()? {
        "dequantised-convolution" => {
            let (windows, padding, tail) = (words.windows()?, words.next()?, words.tail()?);
            arithmetic::dequantised_convolution(
                windows,
                padding,
                tail,
                first,
                second,
                &offsets,
                &multipliers,
                &bias,
            )
        }
        "dequantised-depthwise-convolution" => {
            let (windows, padding, tail) = (words.windows()?, words.next()?, words.tail()?);
            arithmetic::dequantised_depthwise_convolution(
                windows,
                padding,
                tail,
                first,
                second,
                &offsets,
                &multipliers,
                &bias,
            )
        }
        "dequantised-matrix-product" => {
            let (size, tail) = (words.triple()?, words.tail()?);
            arithmetic::dequantised_matrix_product(
                size,
                tail,
                first,
                second,
                &offsets,
                &multipliers,
                &bias,
            )
        }
        "dequantise" => arithmetic::dequantise(words.quantisation()?, first),
        _ => return None,
    })
}

fn integers(bytes: &[u8]) -> Vec<i32> {
    numbers(bytes).into_iter().map(u32::cast_signed).collect()
}

/// The bytes of little-endian numbers.
pub(crate) fn bytes(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

impl Words<'_> {
    fn quantised_windows(&mut self) -> Option<(Windows, u8, Requantisation)> {
        Some((self.windows()?, self.next()?, self.requantisation()?))
    }

    fn quantisation(&mut self) -> Option<Quantisation> {
        Some(Quantisation { scale: self.next()?, zero_point: self.next()? })
    }

    fn requantisation(&mut self) -> Option<Requantisation> {
        let zero_point = self.next()?;
        Some(Requantisation { zero_point, least: self.next()?, greatest: self.next()? })
    }
}
