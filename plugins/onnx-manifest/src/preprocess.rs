//! What makes inputs of the graph from fields.

use serde::{Deserialize, Serialize};

use crate::{Labels, Value};

/// Texts that become tokens, as Hugging Face's `tokenizers` makes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    /// The field with the text.
    pub input: String,
    /// The path of a `tokenizer.json`.
    pub tokenizer: String,
    /// The most tokens of a text; longer ones are truncated.
    pub max_length: usize,
    /// The input of the graph for the tokens.
    #[serde(default = "ids")]
    pub ids: String,
    /// The input of the graph that is 1 for tokens and 0 for padding, if there is one of that name.
    #[serde(default = "mask")]
    pub mask: String,
    /// The input of the graph for the types of tokens, if there is one of that name.
    #[serde(default = "types")]
    pub types: String,
}

fn ids() -> String {
    "input_ids".to_owned()
}

fn mask() -> String {
    "attention_mask".to_owned()
}

fn types() -> String {
    "token_type_ids".to_owned()
}

/// Files of pictures that become pixels, as Pillow makes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The field with the file: JPEG, PNG or WebP.
    pub input: String,
    /// The input of the graph for the pixels.
    pub graph: String,
    /// How the picture is resized.
    pub resize: Resize,
    /// How pixels are computed when a picture is resized.
    #[serde(default)]
    pub resample: Resample,
    /// The height and the width of the part in the middle that is kept.
    pub crop: Option<[u32; 2]>,
    /// The factor of a level, which is 0 to 255. By default 1/255.
    #[serde(default = "scale")]
    pub scale: f64,
    /// What is subtracted from a scaled level, by channel.
    #[serde(default)]
    pub mean: [f64; 3],
    /// What the difference is divided by, by channel.
    #[serde(default = "ones")]
    pub std: [f64; 3],
    /// The order of dimensions.
    #[serde(default)]
    pub layout: Layout,
    /// The order of channels, which that of `mean` and `std` is as well.
    #[serde(default)]
    pub channels: Channels,
}

fn scale() -> f64 {
    1.0 / 255.0
}

fn ones() -> [f64; 3] {
    [1.0; 3]
}

/// The size to which a picture is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The height and the width.
    Exact([u32; 2]),
    /// The shortest side; the other one in proportion.
    Shortest(u32),
}

/// How pixels are computed when a picture is resized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resample {
    /// Linear, over as many pixels as are replaced by one.
    #[default]
    Bilinear,
    /// Cubic, over twice as many.
    Bicubic,
}

/// The order of dimensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Rows, channels, height, width.
    #[default]
    Nchw,
    /// Rows, height, width, channels.
    Nhwc,
}

/// The order of channels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// Numbers and texts that become the columns of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The input of the graph, of dimensions `[columns]`.
    pub graph: String,
    /// The columns, from the first to the last.
    pub columns: Vec<Column>,
}

/// A field and the column, or the columns, that it becomes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// The field.
    pub input: String,
    /// The value that says that there is none. It is the field's default.
    pub missing: Option<Value>,
    /// What replaces a missing value. By default it is NaN for a number. Without `missing`, it is the
    /// field's default as well.
    pub fill: Option<Value>,
    /// The categories, in the order of their codes.
    pub categories: Option<Categories>,
    /// What becomes of a category. By default a code.
    #[serde(default)]
    pub encoding: Encoding,
    /// What becomes of a value that is no category.
    #[serde(default)]
    pub unknown: Unknown,
    /// What is subtracted from a number, after missing values have been replaced.
    #[serde(default)]
    pub mean: f64,
    /// What the difference is divided by.
    #[serde(default = "one")]
    pub std: f64,
}

fn one() -> f64 {
    1.0
}

/// The values of a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a list of texts or of whole numbers, or the path of a file of texts"
)]
pub enum Categories {
    /// Whole numbers.
    Integers(Vec<i64>),
    /// Texts.
    Labels(Labels),
}

/// What becomes of a category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// One column with its index, from 0.
    #[default]
    Code,
    /// A column for each category, 1 for that of the value and 0 for others.
    OneHot,
}

/// What becomes of a value that is no category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// The row is rejected.
    #[default]
    Reject,
    /// Columns of zeros, for `one_hot`.
    Zeros,
    /// This code, for `code`.
    Code(f64),
}
