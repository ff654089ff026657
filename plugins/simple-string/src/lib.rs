//! Adds and subtracts two rows of sixteen numbers in text form: the model `simple_string` that
//! published examples of Open Inference Protocol clients use.

use guesthouse_guest::{
    Assets, Batch, Datatype, Error, Field, Guest, PredictError, Rejections, Signature, Tensor,
};

/// The numbers of a row.
const WIDTH: usize = 16;

/// The longest text form of a 64-bit number, in characters.
const LONGEST: u32 = 20;

struct SimpleString;

impl Guest for SimpleString {
    fn init(_assets: &Assets) -> Result<(Self, Signature), Error> {
        let numbers = |name, description| {
            let width = u32::try_from(WIDTH).expect("a row is short");
            Field::text(name, description).row_shape([Some(width)])
        };
        let inputs = [
            numbers("INPUT0", "decimal integers of 64 bits").length(1, LONGEST),
            numbers("INPUT1", "decimal integers of 64 bits").length(1, LONGEST),
        ];
        let outputs = [
            numbers("OUTPUT0", "INPUT0 + INPUT1, in decimal"),
            numbers("OUTPUT1", "INPUT0 - INPUT1, in decimal"),
        ];
        Ok((Self, Signature::new(inputs, outputs).max_batch_size(8)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let mut rejections = Rejections::default();
        let one = numbers(batch, "INPUT0", &mut rejections)?;
        let other = numbers(batch, "INPUT1", &mut rejections)?;
        rejections.check()?;
        let output = |name, operation: fn(i128, i128) -> i128| {
            // With 64 bits, neither operation overflows.
            let results = one.iter().zip(&other).map(|(one, other)| operation(*one, *other));
            texts(name, batch.rows(), results)
        };
        Ok(vec![output("OUTPUT0", |a, b| a + b), output("OUTPUT1", |a, b| a - b)])
    }
}

/// The numbers of all rows, concatenated. A row with a text that is not a number is rejected.
fn numbers(
    batch: &Batch,
    name: &str,
    rejections: &mut Rejections,
) -> Result<Vec<i128>, PredictError> {
    let texts = batch.texts(name)?;
    let mut numbers = Vec::with_capacity(texts.len());
    for (row, texts) in texts.chunks(WIDTH).enumerate() {
        let row_numbers: Result<Vec<i64>, _> = texts.iter().map(|text| text.parse()).collect();
        match row_numbers {
            Ok(row_numbers) => numbers.extend(row_numbers.into_iter().map(i128::from)),
            Err(_) => rejections.reject(row, name, "has a text that is no decimal integer"),
        }
    }
    Ok(numbers)
}

fn texts(name: &str, rows: usize, numbers: impl Iterator<Item = i128>) -> Tensor {
    let mut data = Vec::new();
    for number in numbers {
        let text = number.to_string();
        let length = u32::try_from(text.len()).expect("a number is short");
        data.extend_from_slice(&length.to_le_bytes());
        data.extend_from_slice(text.as_bytes());
    }
    Tensor::raw(name, Datatype::Bytes, vec![rows as u64, WIDTH as u64], data)
}

guesthouse_guest::export!(SimpleString);
