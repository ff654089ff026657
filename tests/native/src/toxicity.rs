//! The model `toxicity` in this process, with the guest's own preprocessing, so that servers differ in
//! nothing else.

#[path = "../../../plugins/toxicity/src/vocabulary.rs"]
mod vocabulary;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use cases::Dimension;
use serde_json::{Value, json};
use tract_onnx::prelude::*;

use self::vocabulary::Vocabulary;
use crate::model::{self, Plan};

/// The score from which a text is called toxic, that of version 1.0.0.
const THRESHOLD: f32 = 0.5;

pub(crate) struct Toxicity {
    vocabulary: Vocabulary,
    plan: Plan,
}

impl Toxicity {
    pub(crate) fn load(assets: &Path) -> Result<Self> {
        let text = fs::read_to_string(assets.join("vocabulary.tsv"));
        let vocabulary = Vocabulary::parse(&text.context("failed to read the vocabulary")?)?;
        let shape = ["rows", "terms"].map(|name| Dimension::Named(name.to_owned())).to_vec();
        let inputs = [(i64::datum_type(), shape.clone()), (f32::datum_type(), shape)];
        let plan = model::load(&assets.join("model.onnx"), &inputs)?;
        Ok(Self { vocabulary, plan })
    }

    /// Answers a request of one row.
    pub(crate) fn predict(&self, request: &Value) -> Result<Value> {
        let text = request["text"].as_str().context("the request has no text")?;
        let score = self.score(text.trim())?;
        let label = if score >= THRESHOLD { "toxic" } else { "clean" };
        Ok(json!({ "label": label, "score": score }))
    }

    pub(crate) fn score(&self, text: &str) -> Result<f32> {
        let mut known = self.vocabulary.weigh(text);
        if known.is_empty() {
            known.push((0, 0.0));
        }
        let shape = [1, known.len()];
        let (terms, weights): (Vec<i64>, Vec<f32>) = known.into_iter().unzip();
        let terms = Tensor::from_shape(&shape, &terms)?.into_tvalue();
        let weights = Tensor::from_shape(&shape, &weights)?.into_tvalue();
        let outputs = self.plan.run(tvec![terms, weights])?;
        let scores = outputs.first().context("the graph has no output")?;
        let scores = scores.to_plain_array_view::<f32>()?;
        scores.iter().next().copied().context("the output is empty")
    }
}
