//! Toxicity of a text: TF-IDF over a fixed vocabulary, then a calibrated linear classifier in ONNX.
//!
//! The preprocessing is scikit-learn's `TfidfVectorizer` with the settings in
//! `models/toxicity/README.md`. It is part of the same artifact as the weights, so the two cannot
//! diverge.

mod vocabulary;

use guesthouse_guest::tract_onnx::prelude::Tensor as Array;
use guesthouse_guest::{
    Assets, Batch, Error, Field, Guest, Model, ModelInput, PredictError, Signature, Tensor, export,
};
use vocabulary::Vocabulary;

struct Toxicity {
    vocabulary: Vocabulary,
    model: Model,
    threshold: f32,
}

impl Guest for Toxicity {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let toxicity = Self {
            vocabulary: Vocabulary::parse(&assets.read_text("vocabulary.tsv")?)?,
            model: Model::builder()
                .input(ModelInput::new::<i64>().named("rows").named("terms"))
                .input(ModelInput::new::<f32>().named("rows").named("terms"))
                .load_onnx(assets, "model.onnx")?,
            threshold: assets.parameter("threshold")?,
        };
        toxicity.scores(&["run once before the snapshot"]).map_err(Error::from)?;

        let text = Field::text("text", "the text to judge").stripped().length(1, 2000);
        let label = Field::label("label", "toxic from the threshold on", ["clean", "toxic"]);
        let score = Field::fp32("score", "probability that the text is toxic").range(0.0, 1.0);
        Ok((toxicity, Signature::new([text], [label, score]).max_batch_size(64)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let scores = self.scores(&batch.texts("text")?)?;
        let label = |score: &f32| {
            if *score >= self.threshold { "toxic" } else { "clean" }
        };
        let labels = Tensor::texts("label", scores.iter().map(label));
        Ok(vec![labels, Tensor::fp32("score", scores)])
    }
}

impl Toxicity {
    fn scores(&self, texts: &[&str]) -> Result<Vec<f32>, PredictError> {
        let rows: Vec<_> = texts.iter().map(|text| self.vocabulary.weigh(text)).collect();
        // Rows are padded to the longest one with weight 0, and to length 1 if no text has a known
        // term.
        let width = rows.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut terms = vec![0_i64; rows.len() * width];
        let mut weights = vec![0_f32; rows.len() * width];
        for (row, known) in rows.iter().enumerate() {
            for (column, (term, weight)) in known.iter().enumerate() {
                terms[row * width + column] = *term;
                weights[row * width + column] = *weight;
            }
        }
        let shape = [rows.len(), width];
        let terms = Array::from_shape(&shape, &terms).map_err(PredictError::failed)?;
        let weights = Array::from_shape(&shape, &weights).map_err(PredictError::failed)?;
        self.model.run([terms, weights])?.fp32(0)
    }
}

export!(Toxicity);
