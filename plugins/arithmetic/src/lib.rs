//! Lets the host execute the operations that its callers describe, for tests of the interface
//! `arithmetic`.
//!
//! A row's `call` names a function of the interface, followed by its scalar parameters in the order
//! of `wit/model.wit`, separated by spaces; the operands are the bytes of little-endian numbers.
//! With the manifest's parameter `insist`, `init` calls a function even if that is not granted.

mod call;
mod raw;

use guesthouse_guest::bindings::guesthouse::model::arithmetic;
use guesthouse_guest::bindings::guesthouse::model::arithmetic::{Activation, Tail};
use guesthouse_guest::{Assets, Batch, Error, Field, Guest, PredictError, Signature, Tensor};

use crate::call::Operands;

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
            operand("residual", "the fourth operand"),
        ];
        let result = Field::bytes("result", "the result");
        Ok((Self { granted, squares }, Signature::new(inputs, [result]).max_batch_size(1)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let row = |name| Ok::<_, PredictError>(batch.bytes(name)?[0].to_vec());
        let call = batch.texts("call")?[0];
        let operands = Operands {
            first: numbers(&row("first")?),
            second: numbers(&row("second")?),
            bias: numbers(&row("bias")?),
            residual: numbers(&row("residual")?),
        };
        let result = match call {
            "init" => self.squares.clone(),
            // In `init`, and now.
            "granted" => vec![u32::from(self.granted), u32::from(arithmetic::granted())],
            call => call::execute(call, &operands)
                .ok_or_else(|| PredictError::failed("the call is not understood"))?,
        };
        let bytes: Vec<u8> = result.iter().flat_map(|number| number.to_le_bytes()).collect();
        Ok(vec![Tensor::bytes("result", [&bytes[..]])])
    }
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect()
}

guesthouse_guest::export!(Arithmetic);
