//! The inputs of one call of `predict`, and what can go wrong with it.

use crate::bindings::guesthouse::model::types as wit;

/// The inputs of one call, validated by the host against the signature.
#[derive(Debug)]
pub struct Batch {
    inputs: Vec<wit::Tensor>,
}

impl Batch {
    pub(crate) fn new(inputs: Vec<wit::Tensor>) -> Self {
        Self { inputs }
    }

    /// Number of rows; at least 1.
    pub fn rows(&self) -> usize {
        let rows = self.inputs.first().and_then(|input| input.shape.first()).copied();
        rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(0)
    }

    /// One text a row.
    ///
    /// # Errors
    /// The signature has no such input, or it does not hold texts.
    pub fn texts(&self, name: &str) -> Result<Vec<&str>, PredictError> {
        let texts = self.bytes(name)?.into_iter().map(std::str::from_utf8);
        texts.collect::<Result<_, _>>().map_err(|_error| wrong_type(name, "texts"))
    }

    /// One byte string a row.
    ///
    /// # Errors
    /// The signature has no such input, or it is not of datatype `bytes`.
    pub fn bytes(&self, name: &str) -> Result<Vec<&[u8]>, PredictError> {
        let mut rest = self.data(name, wit::Datatype::Bytes)?;
        let mut elements = Vec::with_capacity(self.rows());
        while let Some((length, after)) = rest.split_first_chunk() {
            let length = u32::from_le_bytes(*length) as usize;
            let element = after.split_at_checked(length);
            let (element, after) = element.ok_or_else(|| wrong_type(name, "byte strings"))?;
            elements.push(element);
            rest = after;
        }
        Ok(elements)
    }

    /// The elements of all rows, row-major.
    ///
    /// # Errors
    /// The signature has no such input, or it is not of datatype `fp32`.
    pub fn fp32(&self, name: &str) -> Result<Vec<f32>, PredictError> {
        let (elements, _rest) = self.data(name, wit::Datatype::Fp32)?.as_chunks();
        Ok(elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// The elements of all rows, row-major.
    ///
    /// # Errors
    /// The signature has no such input, or it is not of datatype `int64`.
    pub fn int64(&self, name: &str) -> Result<Vec<i64>, PredictError> {
        let (elements, _rest) = self.data(name, wit::Datatype::Int64)?.as_chunks();
        Ok(elements.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    }

    /// The shape of an input, the number of rows first.
    ///
    /// # Errors
    /// The signature has no such input.
    pub fn shape(&self, name: &str) -> Result<&[u64], PredictError> {
        Ok(&self.input(name)?.shape)
    }

    /// The raw bytes of an input.
    ///
    /// # Errors
    /// The signature has no such input, or it is of another datatype.
    pub fn data(&self, name: &str, datatype: wit::Datatype) -> Result<&[u8], PredictError> {
        let input = self.input(name)?;
        if input.datatype != datatype {
            return Err(wrong_type(name, &format!("{datatype:?}")));
        }
        Ok(&input.data)
    }

    fn input(&self, name: &str) -> Result<&wit::Tensor, PredictError> {
        let input = self.inputs.iter().find(|input| input.name == name);
        input.ok_or_else(|| PredictError::failed(format!("no input {name:?}")))
    }
}

fn wrong_type(name: &str, wanted: &str) -> PredictError {
    PredictError::failed(format!("input {name:?} does not hold {wanted}"))
}

/// Rows refused through the caller's fault, collected while a batch is looked through.
#[derive(Debug, Default)]
pub struct Rejections(Vec<wit::Rejection>);

impl Rejections {
    /// Refuse one row: `reason` is a lower-case fragment that the caller may read.
    ///
    /// # Panics
    /// More than 2³² rows, which no batch has.
    pub fn reject(&mut self, row: usize, input: &str, reason: impl Into<String>) {
        let row = u32::try_from(row).expect("max-batch-size is a u32");
        self.0.push(wit::Rejection { row, input: input.to_owned(), reason: reason.into() });
    }

    /// Nothing, if no row was refused.
    ///
    /// # Errors
    /// [`PredictError::Rejected`] with all refused rows.
    pub fn check(self) -> Result<(), PredictError> {
        if self.0.is_empty() { Ok(()) } else { Err(PredictError::Rejected(self)) }
    }
}

/// Why a call of `predict` gives no outputs.
#[derive(Debug)]
pub enum PredictError {
    /// Some rows are unacceptable, through the caller's fault.
    Rejected(Rejections),
    /// The guest failed; the text is logged, the caller does not see it.
    Failed(String),
}

impl PredictError {
    /// The guest failed; the text is logged, the caller does not see it.
    pub fn failed(reason: impl std::fmt::Display) -> Self {
        Self::Failed(reason.to_string())
    }

    pub(crate) fn into_wit(self) -> wit::PredictError {
        match self {
            Self::Rejected(rejections) => wit::PredictError::Rejected(rejections.0),
            Self::Failed(reason) => wit::PredictError::Failed(reason),
        }
    }
}
