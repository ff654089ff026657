//! Whether a text is positive: the weights of its words are added up.

use std::collections::BTreeMap;

use guesthouse_guest::{Assets, Batch, Error, Field, Guest, PredictError, Signature, Tensor};

/// The labels, from the lowest score to the highest.
const LABELS: [&str; 2] = ["negative", "positive"];

struct Sentiment {
    // Not a `HashMap`: its random seed would be a part of the snapshot.
    weights: BTreeMap<String, f64>,
    threshold: f64,
}

impl Guest for Sentiment {
    fn init(assets: &Assets) -> Result<(Self, Signature), Error> {
        let weights = parse_weights(&assets.read_text("words.tsv")?).map_err(Error::new)?;
        let sentiment = Self { weights, threshold: assets.parameter("threshold")? };

        let text = Field::text("text", "the text to judge").stripped().length(1, 2000);
        let label = Field::label("label", "positive from the threshold on", LABELS);
        let score = Field::fp32("score", "how positive the text is").range(0.0, 1.0);
        Ok((sentiment, Signature::new([text], [label, score]).max_batch_size(64)))
    }

    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
        let scores: Vec<f64> =
            batch.texts("text")?.into_iter().map(|text| self.score(text)).collect();
        let labels = scores.iter().map(|score| LABELS[usize::from(*score >= self.threshold)]);
        let numbers = scores.iter().map(|score| *score as f32);
        Ok(vec![Tensor::texts("label", labels), Tensor::fp32("score", numbers)])
    }
}

impl Sentiment {
    /// From 0 for negative to 1 for positive.
    fn score(&self, text: &str) -> f64 {
        let words = text.split_whitespace().map(|word| {
            let letters = word.chars().filter(|letter| letter.is_alphabetic());
            letters.flat_map(char::to_lowercase).collect::<String>()
        });
        let sum: f64 = words.filter_map(|word| self.weights.get(&word)).sum();
        1.0 / (1.0 + (-sum).exp())
    }
}

/// Parse lines with a word and its weight.
fn parse_weights(text: &str) -> Result<BTreeMap<String, f64>, String> {
    let line = |(index, line): (usize, &str)| {
        let parsed = line.split_once('\t').and_then(|(word, weight)| {
            Some((word.to_owned(), weight.trim().parse().ok()?))
        });
        parsed.ok_or_else(|| format!("line {} of words.tsv is not a word and a weight", index + 1))
    };
    text.lines().enumerate().map(line).collect()
}

guesthouse_guest::export!(Sentiment);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_decide_the_score() {
        let weights = parse_weights(include_str!("../assets/words.tsv")).unwrap();
        let sentiment = Sentiment { weights, threshold: 0.5 };
        assert!(sentiment.score("I LOVE it!") > 0.8);
        assert!(sentiment.score("bad, bad, bad") < 0.1);
        assert_eq!(sentiment.score("a table"), 0.5);
    }

    #[test]
    fn a_line_without_a_weight_is_rejected() {
        assert!(parse_weights("good\t1\nbad").unwrap_err().contains("line 2"));
    }
}
