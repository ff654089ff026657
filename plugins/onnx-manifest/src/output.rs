//! The fields that callers receive, and the postprocessing that makes them.

use serde::{Deserialize, Serialize};

/// A field that callers receive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// The name of the field: ASCII letters, digits and `_`, beginning with a letter.
    pub name: String,
    /// The value of the graph that it is made of: an output or any other one. By default the output
    /// of the same name.
    pub graph: Option<String>,
    /// A description in one line.
    pub description: Option<String>,
    /// The unit, which is added to the description.
    pub unit: Option<String>,
    /// What happens to the graph's value, in this order.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// A row of one element is this element, without brackets.
    #[serde(default)]
    pub scalar: bool,
    /// The least number that there is. A call with another one fails.
    pub minimum: Option<f64>,
    /// The greatest number that there is. A call with another one fails.
    pub maximum: Option<f64>,
}

/// A step of postprocessing. Those that look at several numbers do so along the last dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Probabilities of logits.
    Softmax,
    /// The probability of each logit.
    Sigmoid,
    /// Vectors of length 1.
    L2Norm,
    /// The mean over the tokens of a text, of dimensions `[tokens, features]`. The parameter is the
    /// input of the graph that is 1 for the tokens that count.
    MeanPool {
        /// An input of the graph.
        mask: String,
    },
    /// The first token of a text, of dimensions `[tokens, features]`.
    ClsPool,
    /// The number with this index, from 0.
    Element(usize),
    /// The index of the greatest number; the first one of several.
    Argmax,
    /// The so many greatest numbers, beginning with the greatest.
    TopK(usize),
    /// The indexes of the so many greatest numbers, beginning with that of the greatest.
    TopKIndexes(usize),
    /// Whether a number is at least this one.
    Threshold(f64),
    /// The text for an index, or for false and true.
    Labels(Labels),
}

/// Texts, or a file with one in each line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a list of texts, or the path of a file with a text in each line")]
pub enum Labels {
    /// The texts.
    Texts(Vec<String>),
    /// The path of a file. The artifact contains the texts instead.
    File(String),
}

impl Labels {
    /// The texts, after the file has been read.
    pub fn texts(&self) -> &[String] {
        match self {
            Self::Texts(texts) => texts,
            Self::File(_) => &[],
        }
    }
}
