//! The manifest of an ONNX model: fields, preprocessing and postprocessing around the graph.
//!
//! `guesthouse pack --onnx … --manifest model.toml` reads it, replaces paths by what is in the files,
//! and puts it into the artifact as JSON. The guest `onnx` checks it against the graph and carries it
//! out. Here are only the types, which both share; unknown keys are errors.

mod output;
mod preprocess;

use serde::{Deserialize, Serialize};

pub use output::{Labels, Output, Step};
pub use preprocess::{
    Categories, Channels, Column, Encoding, Image, Layout, Resample, Resize, Table, Tokenize,
    Unknown,
};

/// A whole manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxManifest {
    /// What the artifact says about itself.
    #[serde(default, skip_serializing)]
    pub about: About,
    /// The fields that callers send, in the order of the signature. Inputs of the graph that no field
    /// and no preprocessing feeds become fields of their own, after these.
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// Texts that become tokens.
    #[serde(default)]
    pub tokenize: Vec<Tokenize>,
    /// Files of pictures that become pixels.
    #[serde(default)]
    pub image: Vec<Image>,
    /// Numbers and texts that become the columns of one tensor.
    #[serde(default)]
    pub table: Vec<Table>,
    /// The fields that callers receive, in the order of the signature. Without any, all outputs of the
    /// graph are.
    #[serde(default)]
    pub outputs: Vec<Output>,
}

/// The metadata of the artifact.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// A description of one line.
    pub description: Option<String>,
    /// The SPDX licence expression.
    pub licenses: Option<String>,
    /// The authors.
    pub authors: Option<String>,
    /// The URL of the source.
    pub source: Option<String>,
    /// The revision of the source.
    pub revision: Option<String>,
    /// A description of how the model was made.
    pub provenance: Option<String>,
}

/// A field that callers send.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The name of the field: ASCII letters, digits and `_`, beginning with a letter.
    pub name: String,
    /// The input of the graph that it feeds; by default the one of the same name. A field that
    /// preprocessing takes feeds none.
    pub graph: Option<String>,
    /// A description in one line.
    pub description: Option<String>,
    /// The unit, which is added to the description.
    pub unit: Option<String>,
    /// The type of a number that a table takes: `fp32`, `fp64`, `int32`, `int64` or `bool`. By default
    /// `fp32`. All other types follow from the graph or from the preprocessing.
    #[serde(rename = "type")]
    pub datatype: Option<NumberType>,
    /// A row of one element is this element, without brackets.
    #[serde(default)]
    pub scalar: bool,
    /// The least number.
    pub minimum: Option<f64>,
    /// The greatest number.
    pub maximum: Option<f64>,
    /// The least and the greatest number of characters of a text, or of bytes of a file.
    pub length: Option<[u32; 2]>,
    /// Remove white space at both ends of a text.
    #[serde(default)]
    pub stripped: bool,
    /// The texts that are allowed.
    pub one_of: Option<Labels>,
    /// The value of a row whose caller sends none. For a row of several elements, it is all of them.
    pub default: Option<Value>,
    /// The number with which shorter rows are extended along dimensions without a fixed size, so that
    /// rows of different sizes can share a call.
    pub padding: Option<f64>,
}

/// The type of a number in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NumberType {
    /// Single precision.
    Fp32,
    /// Double precision.
    Fp64,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// True or false, which are 1 and 0.
    Bool,
}

/// A value of an element.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, a text, true or false")]
pub enum Value {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

impl OnnxManifest {
    /// All lists of texts, which may be the paths of files.
    pub fn labels_mut(&mut self) -> impl Iterator<Item = &mut Labels> {
        let inputs = self.inputs.iter_mut().flat_map(|input| &mut input.one_of);
        let columns = self.table.iter_mut().flat_map(|table| &mut table.columns);
        let categories = columns.filter_map(|column| match &mut column.categories {
            Some(Categories::Labels(labels)) => Some(labels),
            Some(Categories::Integers(_)) | None => None,
        });
        let steps = self.outputs.iter_mut().flat_map(|output| &mut output.steps);
        let steps = steps.filter_map(|step| match step {
            Step::Labels(labels) => Some(labels),
            _ => None,
        });
        inputs.chain(categories).chain(steps)
    }
}
