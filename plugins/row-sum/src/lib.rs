//! Sums rows of any length. Padding with zeros does not change a sum, so rows of different lengths
//! can share a batch.

use guesthouse_guest::{
    Assets, Batch, Datatype, Error, Field, Guest, PredictError, Signature, Tensor,
};

struct RowSum;

impl Guest for RowSum {
    fn init(_assets: &Assets) -> Result<(Self, Signature), Error> {
        let numbers = Field::new("INPUT0", "the numbers", Datatype::Fp32)
            .row_shape([None])
            .padded(0_f32.to_le_bytes());
        let sum = Field::fp32("OUTPUT0", "what they add up to, from the first to the last");
        Ok((Self, Signature::new([numbers], [sum]).max_batch_size(64)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let (numbers, rows) = (batch.fp32("INPUT0")?, batch.rows());
        let width = numbers.len().checked_div(rows).unwrap_or(0);
        // Starts from positive zero, so that padding does not even change the sign of a zero.
        let sum = |row: usize| numbers[row * width..][..width].iter().fold(0.0, |sum, n| sum + n);
        Ok(vec![Tensor::fp32("OUTPUT0", (0..rows).map(sum))])
    }
}

guesthouse_guest::export!(RowSum);
