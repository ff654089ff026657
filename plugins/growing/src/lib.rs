//! Measures texts, with a signature that depends on a parameter: for tests of changes of the
//! contract.
//!
//! The manifest's parameter `stage` selects the signature: stage 1 has a length; stage 2 adds an
//! optional factor and a weight; stage 3, another major version, requires the factor and reorders
//! all fields.

use guesthouse_guest::{Assets, Batch, Error, Field, Guest, PredictError, Signature, Tensor};

/// The default factor.
const FACTOR: f32 = 2.0;

struct Growing {
    stage: u8,
}

impl Guest for Growing {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let stage = assets.parameter("stage")?;
        let text = Field::text("text", "what is measured").length(1, 100);
        let factor = Field::fp32("factor", "the weight of a byte").range(0.0, 1000.0);
        let length = Field::int64("length", "its bytes");
        let weight = Field::fp32("weight", "the weight of all of them");
        let signature = match stage {
            1 => Signature::new([text], [length]),
            2 => {
                let factor = factor.default_row(FACTOR.to_le_bytes());
                Signature::new([text, factor], [length, weight])
            }
            3 => Signature::new([factor, text], [weight, length]),
            other => return Err(Error::new(format!("there is no stage {other}"))),
        };
        Ok((Self { stage }, signature.max_batch_size(8)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let lengths: Vec<_> = batch.texts("text")?.iter().map(|text| text.len()).collect();
        let length = Tensor::int64("length", lengths.iter().map(|length| *length as i64));
        if self.stage == 1 {
            return Ok(vec![length]);
        }
        let factors = batch.fp32("factor")?;
        let weights = lengths.iter().zip(&factors).map(|(length, factor)| *length as f32 * factor);
        let weight = Tensor::fp32("weight", weights);
        Ok(if self.stage == 2 { vec![length, weight] } else { vec![weight, length] })
    }
}

guesthouse_guest::export!(Growing);
