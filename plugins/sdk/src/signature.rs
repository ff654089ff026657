//! The signature of a version, to be declared by the guest.

use crate::bindings::guesthouse::model::types as wit;

/// An input or an output. The host validates every value of an input before it calls the guest, and
/// derives the JSON Schema from it.
#[derive(Debug, Clone)]
pub struct Field(wit::Field);

impl Field {
    /// One UTF-8 text per row (datatype `bytes`, shape `[rows]`).
    pub fn text(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Bytes).with(wit::Constraint::Text)
    }

    /// One byte string per row, such as a file (datatype `bytes`, shape `[rows]`).
    pub fn bytes(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Bytes)
    }

    /// One label per row, out of `labels` (datatype `bytes`, shape `[rows]`).
    pub fn label<const N: usize>(name: &str, description: &str, labels: [&str; N]) -> Self {
        Self::text(name, description).one_of(labels.map(str::to_owned))
    }

    /// One single-precision number per row (shape `[rows]`).
    pub fn fp32(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Fp32)
    }

    /// One 64-bit integer per row (shape `[rows]`).
    pub fn int64(name: &str, description: &str) -> Self {
        Self::new(name, description, wit::Datatype::Int64)
    }

    /// A field of any datatype, with one element per row unless [`Field::row_shape`] is called.
    ///
    /// The name is 1 to 64 ASCII letters, digits and `_`, beginning with a letter. The host rejects
    /// names that only differ in case, and names of other members of responses.
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

    /// Set the dimensions of one row, without the batch dimension; `None` is a variable size.
    #[must_use]
    pub fn row_shape(mut self, shape: impl IntoIterator<Item = Option<u32>>) -> Self {
        self.0.row_shape = shape.into_iter().collect();
        self
    }

    /// Set the default of an input: the elements of one row in the encoding of
    /// [`Tensor::raw`](crate::Tensor::raw). An input without a default is required. All dimensions
    /// of the row must be fixed.
    #[must_use]
    pub fn default_row(mut self, row: impl Into<Vec<u8>>) -> Self {
        self.0.default = Some(row.into());
        self
    }

    /// Strip white space at both ends before other constraints are checked.
    #[must_use]
    pub fn stripped(self) -> Self {
        self.with(wit::Constraint::Stripped)
    }

    /// Bound the length: the characters of a text, or the bytes of any other byte string.
    #[must_use]
    pub fn length(self, minimum: u32, maximum: u32) -> Self {
        self.with(wit::Constraint::Length(wit::LengthRange { minimum, maximum }))
    }

    /// Bound the value, inclusively.
    #[must_use]
    pub fn range(self, minimum: f64, maximum: f64) -> Self {
        self.bounds(Some(minimum), Some(maximum))
    }

    /// Bound the value, inclusively, on one side or on both.
    #[must_use]
    pub fn bounds(self, minimum: Option<f64>, maximum: Option<f64>) -> Self {
        self.with(wit::Constraint::Range(wit::NumberRange { minimum, maximum }))
    }

    /// Let a text be one of these.
    #[must_use]
    pub fn one_of(self, labels: impl IntoIterator<Item = String>) -> Self {
        self.with(wit::Constraint::OneOf(labels.into_iter().collect()))
    }

    /// Let rows of different sizes share a call of `predict`: the host pads shorter ones with
    /// `element`, in the encoding of [`Tensor::raw`](crate::Tensor::raw), along variable
    /// dimensions. Padding must not change the outputs, whose dimensions must all be fixed.
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
    /// Create a signature with a batch size of 1 unless [`Signature::max_batch_size`] is called.
    ///
    /// The order is part of the contract, because positions are field numbers in gRPC: within a
    /// major version, new fields must come after existing ones.
    pub fn new(
        inputs: impl IntoIterator<Item = Field>,
        outputs: impl IntoIterator<Item = Field>,
    ) -> Self {
        Self(wit::Signature {
            inputs: inputs.into_iter().map(|field| field.0).collect(),
            outputs: outputs.into_iter().map(|field| field.0).collect(),
            max_batch_size: 1,
        })
    }

    /// Set the most rows of one call of `predict`.
    #[must_use]
    pub fn max_batch_size(mut self, rows: u32) -> Self {
        self.0.max_batch_size = rows;
        self
    }

    pub(crate) fn into_wit(self) -> wit::Signature {
        self.0
    }
}
