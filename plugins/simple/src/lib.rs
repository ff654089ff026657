//! Adds and subtracts two rows of sixteen numbers: the model `simple` that published examples of
//! Open Inference Protocol clients use.

use guesthouse_guest::{
    Assets, Batch, Datatype, Error, Field, Guest, PredictError, Signature, Tensor,
};

/// The numbers of a row.
const WIDTH: u32 = 16;

struct Simple;

impl Guest for Simple {
    fn init(_assets: &Assets) -> Result<(Self, Signature), Error> {
        let numbers = |name, description| {
            Field::new(name, description, Datatype::Int32).row_shape([Some(WIDTH)])
        };
        let inputs = [
            numbers("INPUT0", "what is added to and subtracted from"),
            numbers("INPUT1", "what is added and subtracted"),
        ];
        let outputs = [
            numbers("OUTPUT0", "INPUT0 + INPUT1, wrapping around at 32 bits"),
            numbers("OUTPUT1", "INPUT0 - INPUT1, wrapping around at 32 bits"),
        ];
        Ok((Self, Signature::new(inputs, outputs).max_batch_size(8)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let (one, other) = (numbers(batch, "INPUT0")?, numbers(batch, "INPUT1")?);
        let output = |name, operation: fn(i32, i32) -> i32| {
            let results = one.iter().zip(&other).map(|(one, other)| operation(*one, *other));
            let shape = vec![batch.rows() as u64, u64::from(WIDTH)];
            Tensor::raw(name, Datatype::Int32, shape, results.flat_map(i32::to_le_bytes).collect())
        };
        Ok(vec![output("OUTPUT0", i32::wrapping_add), output("OUTPUT1", i32::wrapping_sub)])
    }
}

/// The numbers of all rows, concatenated.
fn numbers(batch: &Batch, name: &str) -> Result<Vec<i32>, PredictError> {
    let (numbers, _rest) = batch.data(name, Datatype::Int32)?.as_chunks();
    Ok(numbers.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
}

guesthouse_guest::export!(Simple);
