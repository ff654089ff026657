//! The inputs of a call of `predict`, and its errors.

use crate::bindings::guesthouse::model::types as wit;

/// The inputs of a call, which the host has validated against the signature.
#[derive(Debug)]
pub struct Batch {
    inputs: Vec<wit::Tensor>,
}

impl Batch {
    pub(crate) fn new(inputs: Vec<wit::Tensor>) -> Self {
        Self { inputs }
    }

    /// The number of rows, at least 1.
    pub fn rows(&self) -> usize {
        let rows = self.inputs.first().and_then(|input| input.shape.first()).copied();
        rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(0)
    }

    /// The texts of an input with one text per row.
    ///
    /// # Errors
    /// The signature has no such input, or it does not hold texts.
    pub fn texts(&self, name: &str) -> Result<Vec<&str>, PredictError> {
        let texts = self.bytes(name)?.into_iter().map(std::str::from_utf8);
        texts.collect::<Result<_, _>>().map_err(|_error| wrong_type(name, "texts"))
    }

    /// The byte strings of an input with one byte string per row.
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

    /// The shape of an input; the first dimension is the number of rows.
    ///
    /// # Errors
    /// The signature has no such input.
    pub fn shape(&self, name: &str) -> Result<&[u64], PredictError> {
        Ok(&self.input(name)?.shape)
    }

    /// The datatype of an input.
    ///
    /// # Errors
    /// The signature has no such input.
    pub fn datatype(&self, name: &str) -> Result<wit::Datatype, PredictError> {
        Ok(self.input(name)?.datatype)
    }

    /// The data of an input, in the encoding of the contract.
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

/// Collects the rejected rows of a batch.
#[derive(Debug, Default)]
pub struct Rejections(Vec<wit::Rejection>);

impl Rejections {
    /// Reject a row. `reason` is a lower-case fragment that is shown to the caller.
    ///
    /// # Panics
    /// More than 2³² rows, which no batch has.
    pub fn reject(&mut self, row: usize, input: &str, reason: impl Into<String>) {
        let row = u32::try_from(row).expect("max-batch-size is a u32");
        self.0.push(wit::Rejection { row, input: input.to_owned(), reason: reason.into() });
    }

    /// Check that no row was rejected.
    ///
    /// # Errors
    /// [`PredictError::Rejected`] with all rejected rows.
    pub fn check(self) -> Result<(), PredictError> {
        if self.0.is_empty() { Ok(()) } else { Err(PredictError::Rejected(self)) }
    }
}

/// Why a call of `predict` returns no outputs.
#[derive(Debug)]
pub enum PredictError {
    /// Some rows are not acceptable: the caller's fault.
    Rejected(Rejections),
    /// The guest failed. The text is logged and not shown to the caller.
    Failed(String),
}

impl PredictError {
    /// The guest failed. The text is logged and not shown to the caller.
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
