//! Calls on 8-bit integers.

use guesthouse_guest::bindings::guesthouse::model::arithmetic::{
    self, Quantisation, Requantisation,
};

use crate::call::{Operands, Words, numbers};

/// Executes a call, and returns the bytes of its result; `None` if it is not understood.
pub(crate) fn execute(call: &str, operands: &Operands) -> Option<Vec<u8>> {
    let Operands { first, second, .. } = operands;
    let (bias, multipliers) = (numbers(&operands.bias), numbers(&operands.residual));
    let offsets = numbers(&operands.offsets).into_iter().map(u32::cast_signed);
    let offsets: Vec<i32> = offsets.collect();
    let mut words = Words(call.split_whitespace());
    let result = match words.word()? {
        "quantised-convolution" => arithmetic::quantised_convolution(
            words.windows()?,
            words.next()?,
            words.requantisation()?,
            first,
            second,
            &offsets,
            &multipliers,
        ),
        "quantised-depthwise-convolution" => arithmetic::quantised_depthwise_convolution(
            words.windows()?,
            words.next()?,
            words.requantisation()?,
            first,
            second,
            &offsets,
            &multipliers,
        ),
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
        "dequantised-convolution" => bytes(&arithmetic::dequantised_convolution(
            words.windows()?,
            words.next()?,
            words.tail()?,
            first,
            second,
            &offsets,
            &multipliers,
            &bias,
        )),
        "dequantised-depthwise-convolution" => {
            bytes(&arithmetic::dequantised_depthwise_convolution(
                words.windows()?,
                words.next()?,
                words.tail()?,
                first,
                second,
                &offsets,
                &multipliers,
                &bias,
            ))
        }
        "dequantised-matrix-product" => bytes(&arithmetic::dequantised_matrix_product(
            words.triple()?,
            words.tail()?,
            first,
            second,
            &offsets,
            &multipliers,
            &bias,
        )),
        "quantised-sum" => {
            let (left, right) = (words.quantisation()?, words.quantisation()?);
            let (scale, output) = (words.next()?, words.requantisation()?);
            arithmetic::quantised_sum(left, right, scale, output, first, second)
        }
        "quantise" => arithmetic::quantise(words.next()?, words.requantisation()?, &numbers(first)),
        "dequantise" => bytes(&arithmetic::dequantise(words.quantisation()?, first)),
        _ => return None,
    };
    Some(result)
}

/// The bytes of little-endian numbers.
pub(crate) fn bytes(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

impl Words<'_> {
    fn quantisation(&mut self) -> Option<Quantisation> {
        Some(Quantisation { scale: self.next()?, zero_point: self.next()? })
    }

    fn requantisation(&mut self) -> Option<Requantisation> {
        let zero_point = self.next()?;
        Some(Requantisation { zero_point, least: self.next()?, greatest: self.next()? })
    }
}
