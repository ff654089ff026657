//! What a version takes and gives, as its author writes it down.

use crate::bindings::guesthouse::model::types as wit;

/// One input or one output. The host checks every value against it before the guest sees it, and
/// derives the JSON Schema from it.
#[derive(Debug, Clone)]
pub struct Field(wit::Field);

impl Field {
    /// A UTF-8 text a row (datatype `bytes`, shape `[rows]`).
    pub fn text(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Bytes).with(wit::Constraint::Text)
    }

    /// A byte string a row, such as a file (datatype `bytes`, shape `[rows]`).
    pub fn bytes(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Bytes)
    }

    /// A label a row, one of `labels` (datatype `bytes`, shape `[rows]`).
    pub fn label<const N: usize>(name: &str, description: &str, labels: [&str; N]) -> Self {
        let labels = labels.map(str::to_owned).to_vec();
        Self::text(name, description).with(wit::Constraint::OneOf(labels))
    }

    /// A single-precision number a row (shape `[rows]`).
    pub fn fp32(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Fp32)
    }

    /// A 64-bit integer a row (shape `[rows]`).
    pub fn int64(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Int64)
    }

    /// A field of any datatype, one element a row until [`Field::row_shape`] says otherwise.
    ///
    /// A name is 1 to 64 ASCII letters, digits and `_`, beginning with a letter. The host refuses
    /// names that differ in upper and lower case only, and those that answers use for themselves.
    pub fn new(name: &str, description: &str, datatype: wit::Datatype) -> Self {
        Self(wit::Field {
            name: name.to_owned(),
            description: description.to_owned(),
            datatype,
            row_shape: Vec::new(),
            constraints: Vec::new(),
            default: None,
        })
    }

    /// The dimensions of one row, without the batch dimension; `None` stands for any size.
    #[must_use]
    pub fn row_shape(mut self, shape: impl IntoIterator<Item = Option<u32>>) -> Self {
        self.0.row_shape = shape.into_iter().collect();
        self
    }

    /// What an input is where a caller leaves it out: the elements of one row in the raw form of
    /// [`Tensor::raw`](crate::Tensor::raw). Without it, an input has to be given. The row's dimensions
    /// are all fixed.
    #[must_use]
    pub fn default_row(mut self, row: impl Into<Vec<u8>>) -> Self {
        self.0.default = Some(row.into());
        self
    }

    /// White space at both ends is removed before anything else is checked.
    #[must_use]
    pub fn stripped(self) -> Self {
        self.with(wit::Constraint::Stripped)
    }

    /// Least and greatest length: characters of a text, bytes else.
    #[must_use]
    pub fn length(self, minimum: u32, maximum: u32) -> Self {
        self.with(wit::Constraint::Length(wit::LengthRange { minimum, maximum }))
    }

    /// Least and greatest value, inclusive.
    #[must_use]
    pub fn range(self, minimum: f64, maximum: f64) -> Self {
        let (minimum, maximum) = (Some(minimum), Some(maximum));
        self.with(wit::Constraint::Range(wit::NumberRange { minimum, maximum }))
    }

    /// Rows of different sizes may share a call of `predict`: the host fills shorter ones up with
    /// `element`, in the raw form of [`Tensor::raw`](crate::Tensor::raw), along the dimensions of any
    /// size. So it must change nothing of the outputs, whose dimensions are all fixed.
    #[must_use]
    pub fn padded(self, element: impl Into<Vec<u8>>) -> Self {
        self.with(wit::Constraint::Padded(element.into()))
    }

    fn with(mut self, constraint: wit::Constraint) -> Self {
        self.0.constraints.push(constraint);
        self
    }
}

/// The inputs and outputs of a version.
#[derive(Debug, Clone)]
pub struct Signature(wit::Signature);

impl Signature {
    /// The inputs and outputs in their order; a batch size of 1 until
    /// [`Signature::max_batch_size`] says otherwise.
    ///
    /// The order is part of what a version promises, because a place is the number of a field in gRPC:
    /// until the next major version, what is new comes after what is old.
    pub fn new<const I: usize, const O: usize>(inputs: [Field; I], outputs: [Field; O]) -> Self {
        Self(wit::Signature {
            inputs: inputs.into_iter().map(|field| field.0).collect(),
            outputs: outputs.into_iter().map(|field| field.0).collect(),
            max_batch_size: 1,
        })
    }

    /// The most rows that one call of `predict` may carry.
    #[must_use]
    pub fn max_batch_size(mut self, rows: u32) -> Self {
        self.0.max_batch_size = rows;
        self
    }

    pub(crate) fn into_wit(self) -> wit::Signature {
        self.0
    }
}
