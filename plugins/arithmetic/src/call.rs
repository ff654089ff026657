//! Reads the text of a call and executes it.

use std::str::{FromStr, SplitWhitespace};

use guesthouse_guest::bindings::guesthouse::model::arithmetic::{
    self, Activation, BinaryFunction, Broadcast, PoolFunction, Products, ReductionFunction,
    RightOperand, Tail, Windows,
};

use crate::raw;

/// The bytes of the operands of a call.
pub(crate) struct Operands {
    pub(crate) first: Vec<u8>,
    pub(crate) second: Vec<u8>,
    pub(crate) bias: Vec<u8>,
    pub(crate) residual: Vec<u8>,
    pub(crate) offsets: Vec<u8>,
}

/// Little-endian numbers.
pub(crate) fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect()
}

/// Executes a call on floating-point numbers; `None` if it is not understood.
pub(crate) fn execute(call: &str, operands: &Operands) -> Option<Vec<u32>> {
    let Operands { first, second, bias, residual, .. } = operands;
    let [first, second, bias, residual] = [first, second, bias, residual].map(|it| numbers(it));
    let [first, second, bias, residual] = [&first[..], &second, &bias, &residual];
    let mut words = Words(call.split_whitespace());
    let result = match words.word()? {
        "convolution" => {
            arithmetic::convolution(words.windows()?, words.tail()?, first, second, bias, residual)
        }
        "depthwise-convolution" => {
            let (windows, tail) = (words.windows()?, words.tail()?);
            arithmetic::depthwise_convolution(windows, tail, first, second, bias, residual)
        }
        "deconvolution" => {
            arithmetic::deconvolution(words.windows()?, words.tail()?, first, second, bias)
        }
        "matrix-product" => {
            let (products, tail) = (words.products()?, words.tail()?);
            arithmetic::matrix_product(products, tail, first, second, bias, residual)
        }
        "unary" => arithmetic::unary(words.tail()?, first),
        "binary" => {
            let (function, broadcast) = (words.binary_function()?, words.broadcast()?);
            arithmetic::binary(function, broadcast, words.tail()?, first, second)
        }
        "softmax" => arithmetic::softmax(words.next()?, first),
        "layer-norm" => arithmetic::layer_norm(words.next()?, words.next()?, first, second, bias),
        "reduction" => {
            let (function, columns) = (words.reduction_function()?, words.next()?);
            arithmetic::reduction(function, columns, words.next()?, first)
        }
        "pool" => arithmetic::pool(words.pool_function()?, words.windows()?, first),
        "repeat" => repeat(words.next()?, first),
        "list" => raw::square(words.next()?, words.next()?),
        "list-at-end" => raw::square_at_end(words.next()?, words.next()?),
        "freed-list" => raw::square_freed(words.next()?),
        _ => return None,
    };
    Some(result)
}

/// Squares the operand so many times, and returns the last result.
fn repeat(times: u32, operand: &[u32]) -> Vec<u32> {
    let tail = Tail { activation: Activation::Square, scale: 1.0, shift: 0.0 };
    let mut result = Vec::new();
    for _ in 0..times {
        result = arithmetic::unary(tail, operand);
    }
    result
}

/// The words of a call.
pub(crate) struct Words<'a>(pub(crate) SplitWhitespace<'a>);

impl<'a> Words<'a> {
    pub(crate) fn word(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    pub(crate) fn next<T: FromStr>(&mut self) -> Option<T> {
        self.word()?.parse().ok()
    }

    fn pair<T: FromStr>(&mut self) -> Option<(T, T)> {
        Some((self.next()?, self.next()?))
    }

    pub(crate) fn triple(&mut self) -> Option<(u32, u32, u32)> {
        Some((self.next()?, self.next()?, self.next()?))
    }

    fn quadruple(&mut self) -> Option<(u32, u32, u32, u32)> {
        Some((self.next()?, self.next()?, self.next()?, self.next()?))
    }

    pub(crate) fn tail(&mut self) -> Option<Tail> {
        let activation = self.activation()?;
        Some(Tail { activation, scale: self.next()?, shift: self.next()? })
    }

    fn activation(&mut self) -> Option<Activation> {
        Some(match self.word()? {
            "identity" => Activation::Identity,
            "relu" => Activation::Relu,
            "leaky-relu" => Activation::LeakyRelu(self.next()?),
            "clip" => Activation::Clip(self.pair()?),
            "hard-sigmoid" => Activation::HardSigmoid(self.pair()?),
            "hard-swish" => Activation::HardSwish,
            "sigmoid" => Activation::Sigmoid,
            "silu" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "gelu" => Activation::Gelu,
            "exp" => Activation::Exp,
            "erf" => Activation::Erf,
            "square-root" => Activation::SquareRoot,
            "reciprocal-square-root" => Activation::ReciprocalSquareRoot,
            "reciprocal" => Activation::Reciprocal,
            "square" => Activation::Square,
            "absolute" => Activation::Absolute,
            _ => return None,
        })
    }

    pub(crate) fn windows(&mut self) -> Option<Windows> {
        Some(Windows {
            batch: self.next()?,
            input_channels: self.next()?,
            output_channels: self.next()?,
            input: self.pair()?,
            output: self.pair()?,
            kernel: self.pair()?,
            stride: self.pair()?,
            padding: self.pair()?,
            dilation: self.pair()?,
        })
    }

    fn products(&mut self) -> Option<Products> {
        Some(Products {
            batch: self.pair()?,
            size: self.triple()?,
            left: self.quadruple()?,
            right: match self.word()? {
                "packed" => RightOperand::Packed,
                "strided" => RightOperand::Strided(self.quadruple()?),
                _ => return None,
            },
            output: self.triple()?,
            scale: self.next()?,
        })
    }

    fn broadcast(&mut self) -> Option<Broadcast> {
        Some(Broadcast {
            shape: self.quadruple()?,
            left: self.quadruple()?,
            right: self.quadruple()?,
        })
    }

    fn binary_function(&mut self) -> Option<BinaryFunction> {
        Some(match self.word()? {
            "add" => BinaryFunction::Add,
            "subtract" => BinaryFunction::Subtract,
            "multiply" => BinaryFunction::Multiply,
            "divide" => BinaryFunction::Divide,
            "maximum" => BinaryFunction::Maximum,
            "minimum" => BinaryFunction::Minimum,
            _ => return None,
        })
    }

    fn reduction_function(&mut self) -> Option<ReductionFunction> {
        Some(match self.word()? {
            "sum" => ReductionFunction::Sum,
            "sum-of-squares" => ReductionFunction::SumOfSquares,
            "maximum" => ReductionFunction::Maximum,
            "minimum" => ReductionFunction::Minimum,
            _ => return None,
        })
    }

    fn pool_function(&mut self) -> Option<PoolFunction> {
        Some(match self.word()? {
            "maximum" => PoolFunction::Maximum,
            "average" => PoolFunction::Average,
            "average-with-padding" => PoolFunction::AverageWithPadding,
            _ => return None,
        })
    }
}
