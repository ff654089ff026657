//! The tensors that a guest returns.

use crate::bindings::guesthouse::model::types as wit;

/// A named array whose first dimension is the batch; little-endian, row-major.
#[derive(Debug, Clone)]
pub struct Tensor(wit::Tensor);

impl Tensor {
    /// A tensor of one text per row, with the shape `[rows]`.
    pub fn texts<'a>(name: &str, rows: impl IntoIterator<Item = &'a str>) -> Self {
        Self::bytes(name, rows.into_iter().map(str::as_bytes))
    }

    /// A tensor of one byte string per row, with the shape `[rows]`.
    ///
    /// # Panics
    /// A string is longer than 4 GiB, more than a guest's memory holds.
    pub fn bytes<'a>(name: &str, rows: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut data = Vec::new();
        let mut count = 0;
        for row in rows {
            let length = u32::try_from(row.len()).expect("a guest's memory is at most 4 GiB");
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(row);
            count += 1;
        }
        Self::raw(name, wit::Datatype::Bytes, vec![count], data)
    }

    /// A tensor of one number per row, with the shape `[rows]`.
    pub fn fp32(name: &str, rows: impl IntoIterator<Item = f32>) -> Self {
        Self::numbers(name, wit::Datatype::Fp32, rows.into_iter().map(f32::to_le_bytes))
    }

    /// A tensor of one integer per row, with the shape `[rows]`.
    pub fn int64(name: &str, rows: impl IntoIterator<Item = i64>) -> Self {
        Self::numbers(name, wit::Datatype::Int64, rows.into_iter().map(i64::to_le_bytes))
    }

    fn numbers<const N: usize>(
        name: &str,
        datatype: wit::Datatype,
        rows: impl Iterator<Item = [u8; N]>,
    ) -> Self {
        let rows: Vec<[u8; N]> = rows.collect();
        Self::raw(name, datatype, vec![rows.len() as u64], rows.into_flattened())
    }

    /// Any tensor. `data` has the encoding of the contract (`wit/model.wit`); the host checks that
    /// it matches the shape.
    pub fn raw(name: &str, datatype: wit::Datatype, shape: Vec<u64>, data: Vec<u8>) -> Self {
        Self(wit::Tensor { name: name.to_owned(), datatype, shape, data })
    }

    /// The same elements in another shape, which the host checks.
    #[must_use]
    pub fn reshaped(mut self, shape: Vec<u64>) -> Self {
        self.0.shape = shape;
        self
    }

    pub(crate) fn into_wit(self) -> wit::Tensor {
        self.0
    }
}
