//! Lets the host execute the operations that its callers describe, for tests of the interface
//! `arithmetic`.
//!
//! A row's `call` names a function of the interface, followed by its scalar parameters in the order
//! of `wit/model.wit`, separated by spaces; the operands are 8-bit integers or the bytes of
//! little-endian numbers.
//! With the manifest's parameter `insist`, `init` calls a function even if that is not granted.

mod call;
mod quantised;
mod raw;

use guesthouse_guest::bindings::guesthouse::model::arithmetic;
use guesthouse_guest::bindings::guesthouse::model::arithmetic::{Activation, Tail};
use guesthouse_guest::{Assets, Batch, Error, Field, Guest, PredictError, Signature, Tensor};

use crate::call::Operands;
use crate::quantised::bytes;

struct Arithmetic {
    /// What `init` was answered.
    granted: bool,
    /// The squares that `init` computed.
    squares: Vec<u32>,
}

impl Guest for Arithmetic {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let granted = arithmetic::granted();
        let numbers = [1_f32, 2.0, 3.0];
        let squares = if granted || assets.parameter::<bool>("insist")? {
            let tail = Tail { activation: Activation::Square, scale: 1.0, shift: 0.0 };
            arithmetic::unary(tail, &numbers.map(f32::to_bits))
        } else {
            numbers.map(|number| (number * number).to_bits()).to_vec()
        };
        let operand = |name, description| {
            // An element without bytes.
            Field::bytes(name, description).default_row(0_u32.to_le_bytes())
        };
        let inputs = [
            Field::text("call", "the function and its scalar parameters").length(1, 1000),
            operand("first", "the first operand"),
            operand("second", "the second operand"),
            operand("bias", "the third operand"),
            operand("residual", "the fourth operand, or the multipliers"),
            operand("offsets", "the offsets of 8-bit sums"),
        ];
        let result = Field::bytes("result", "the result");
        Ok((Self { granted, squares }, Signature::new(inputs, [result]).max_batch_size(1)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let row = |name| Ok::<_, PredictError>(batch.bytes(name)?[0].to_vec());
        let call = batch.texts("call")?[0];
        let operands = Operands {
            first: row("first")?,
            second: row("second")?,
            bias: row("bias")?,
            residual: row("residual")?,
            offsets: row("offsets")?,
        };
        let result = match call {
            "init" => Some(bytes(&self.squares)),
            // In `init`, and now.
            "granted" => {
                let granted = [self.granted, arithmetic::granted()];
                Some(bytes(&granted.map(u32::from)))
            }
            call => call::execute(call, &operands)
                .map(|result| bytes(&result))
                .or_else(|| quantised::execute(call, &operands)),
        };
        let result = result.ok_or_else(|| PredictError::failed("the call is not understood"))?;
        Ok(vec![Tensor::bytes("result", [&result[..]])])
    }
}

guesthouse_guest::export!(Arithmetic);
