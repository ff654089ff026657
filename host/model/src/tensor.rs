//! Named tensors whose first dimension is the batch.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The element type of a tensor: the set of the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    /// A byte string of any length, such as a text or a file.
    Bytes,
    /// The upper half of an FP32.
    Bf16,
}

impl Datatype {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
        Self::Bf16,
    ];

    /// The name of the datatype in the Open Inference Protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
            Self::Bf16 => "BF16",
        }
    }

    /// The datatype with this name in the Open Inference Protocol.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.as_str() == name)
    }

    /// The size of an element, in bytes; `None` for [`Datatype::Bytes`], whose elements vary.
    pub fn element_size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

/// A named array. `data` holds the elements in row-major order, little-endian, without padding. An
/// element of [`Datatype::Bytes`] is its length as a u32, followed by its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The name of the signature's field.
    pub name: String,
    /// The type of every element.
    pub datatype: Datatype,
    /// Elements along each dimension; the first is the number of rows.
    pub shape: Vec<u64>,
    /// The elements. Rows of a request and of a response share the memory of its body.
    pub data: Bytes,
}

/// The data of a tensor does not match its datatype and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// There is no batch dimension.
    #[error("the shape has no batch dimension")]
    NoBatch,
    /// The product of the dimensions overflows.
    #[error("the shape is too large")]
    TooLarge,
    /// The data is longer or shorter than the shape requires.
    #[error("the data is not as long as the shape asks for")]
    Length,
}

impl Tensor {
    /// The number of rows: the first dimension.
    pub fn rows(&self) -> u64 {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Check that the data has exactly the elements that the shape requires.
    ///
    /// # Errors
    /// [`TensorError`] otherwise.
    pub fn check(&self) -> Result<(), TensorError> {
        if self.shape.is_empty() {
            return Err(TensorError::NoBatch);
        }
        let mut elements = 1_usize;
        for dimension in &self.shape {
            let dimension = usize::try_from(*dimension).ok();
            let product = dimension.and_then(|dimension| elements.checked_mul(dimension));
            elements = product.ok_or(TensorError::TooLarge)?;
        }
        let fits = match self.datatype.element_size() {
            Some(size) => {
                elements.checked_mul(size).ok_or(TensorError::TooLarge)? == self.data.len()
            }
            None => count_bytes_elements(&self.data) == Some(elements),
        };
        if fits { Ok(()) } else { Err(TensorError::Length) }
    }

    /// Whether no element is NaN or infinite.
    ///
    /// The tensor must have passed [`Tensor::check`].
    pub fn is_finite(&self) -> bool {
        self.are_finite(&self.data)
    }

    /// The rows with an element that is not [finite](Tensor::is_finite).
    ///
    /// The tensor must have passed [`Tensor::check`].
    pub fn non_finite_rows(&self) -> Vec<usize> {
        let rows = usize::try_from(self.rows()).expect("a checked tensor is counted in usize");
        if self.data.is_empty() || self.are_finite(&self.data) {
            return Vec::new();
        }
        // Only datatypes with a fixed element size have elements that are not finite.
        let chunks = self.data.chunks(self.data.len() / rows).enumerate();
        chunks.filter(|(_, row)| !self.are_finite(row)).map(|(index, _)| index).collect()
    }

    fn are_finite(&self, data: &[u8]) -> bool {
        /// Exactly the floats that are not finite have all bits of the exponent set.
        fn all<const N: usize>(data: &[u8], exponent: u16) -> bool {
            data.as_chunks::<N>().0.iter().all(|element| {
                let upper = u16::from_le_bytes([element[N - 2], element[N - 1]]);
                upper & exponent != exponent
            })
        }
        match self.datatype {
            Datatype::Fp16 => all::<2>(data, 0x7c00),
            Datatype::Bf16 => all::<2>(data, 0x7f80),
            Datatype::Fp32 => all::<4>(data, 0x7f80),
            Datatype::Fp64 => all::<8>(data, 0x7ff0),
            _ => true,
        }
    }

    /// The number of bytes that the first `elements` elements of `rest` take.
    ///
    /// The tensor must have passed [`Tensor::check`] and must have these elements.
    pub fn bytes_of_elements(&self, rest: &[u8], elements: u64) -> usize {
        let elements = usize::try_from(elements).expect("a checked tensor is counted in usize");
        match self.datatype.element_size() {
            Some(size) => elements * size,
            None => offset_of_element(rest, elements),
        }
    }

    /// The elements as floats; integers of more than 53 bits are rounded. Empty for datatypes
    /// without numbers.
    ///
    /// The tensor must have passed [`Tensor::check`].
    pub fn numbers(&self) -> Box<dyn Iterator<Item = f64> + '_> {
        macro_rules! each {
            ($type:ty, $number:expr) => {
                Box::new(
                    self.data
                        .as_chunks()
                        .0
                        .iter()
                        .map(|bytes| $number(<$type>::from_le_bytes(*bytes))),
                )
            };
        }
        #[expect(clippy::cast_precision_loss, reason = "bounds are of double precision, too")]
        match self.datatype {
            Datatype::Uint8 => each!(u8, f64::from),
            Datatype::Uint16 => each!(u16, f64::from),
            Datatype::Uint32 => each!(u32, f64::from),
            Datatype::Uint64 => each!(u64, |value| value as f64),
            Datatype::Int8 => each!(i8, f64::from),
            Datatype::Int16 => each!(i16, f64::from),
            Datatype::Int32 => each!(i32, f64::from),
            Datatype::Int64 => each!(i64, |value| value as f64),
            Datatype::Fp16 => each!(u16, half_precision),
            Datatype::Bf16 => each!(u16, |bits| f64::from(f32::from_bits(u32::from(bits) << 16))),
            Datatype::Fp32 => each!(f32, f64::from),
            Datatype::Fp64 => each!(f64, f64::from),
            Datatype::Bool | Datatype::Bytes => Box::new(std::iter::empty()),
        }
    }

    /// Append the rows of another tensor. Returns false, and appends nothing, if its datatype or
    /// row shape differs.
    #[must_use]
    pub fn append(&mut self, other: &Self) -> bool {
        let (Some((rows, row)), Some((more, other_row))) =
            (self.shape.split_first_mut(), other.shape.split_first())
        else {
            return false;
        };
        if self.datatype != other.datatype || row != other_row {
            return false;
        }
        *rows += more;
        // Without a copy, unless something else shares the memory.
        let mut data = Vec::from(std::mem::take(&mut self.data));
        data.extend_from_slice(&other.data);
        self.data = data.into();
        true
    }

    /// The rows `[start, start + count)`, which share the memory of the tensor.
    ///
    /// The tensor must have passed [`Tensor::check`] and must have these rows.
    pub fn slice_rows(&self, start: usize, count: usize) -> Self {
        let rows = usize::try_from(self.rows()).expect("a checked tensor is counted in usize");
        let (begin, end) = match self.datatype.element_size() {
            Some(_) => {
                let row = self.data.len() / rows.max(1);
                (start * row, (start + count) * row)
            }
            None => {
                let per_row: u64 = self.shape.iter().skip(1).product();
                let per_row = usize::try_from(per_row).expect("as above");
                let begin = offset_of_element(&self.data, start * per_row);
                let length = offset_of_element(&self.data[begin..], count * per_row);
                (begin, begin + length)
            }
        };
        let mut shape = self.shape.clone();
        shape[0] = count as u64;
        let data = self.data.slice(begin..end);
        Self { name: self.name.clone(), datatype: self.datatype, shape, data }
    }

    /// Copy these rows, in this order, into a new tensor.
    ///
    /// The tensor must have passed [`Tensor::check`] and must have these rows.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let mut data = Vec::new();
        // Consecutive rows are copied together.
        for run in rows.chunk_by(|row, next| *next == row + 1) {
            data.extend_from_slice(&self.slice_rows(run[0], run.len()).data);
        }
        let mut shape = self.shape.clone();
        shape[0] = rows.len() as u64;
        Self { name: self.name.clone(), datatype: self.datatype, shape, data: data.into() }
    }
}

/// Convert from IEEE 754 binary16.
fn half_precision(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from((bits >> 10) & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        exponent => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
    }
}

/// The elements of the data of a [`Datatype::Bytes`] tensor. Stops before an element that is
/// truncated.
pub fn bytes_elements(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (element, after) = split_element(rest)?;
        rest = after;
        Some(element)
    })
}

fn split_element(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, after) = data.split_first_chunk()?;
    after.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// The number of elements; `None` if the last one is truncated.
fn count_bytes_elements(data: &[u8]) -> Option<usize> {
    let (mut count, mut rest) = (0, data);
    while !rest.is_empty() {
        (_, rest) = split_element(rest)?;
        count += 1;
    }
    Some(count)
}

fn offset_of_element(data: &[u8], index: usize) -> usize {
    bytes_elements(data).take(index).map(|element| size_of::<u32>() + element.len()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_tensor(rows: &[Vec<u8>]) -> Tensor {
        let mut data = Vec::new();
        for row in rows {
            data.extend_from_slice(&u32::try_from(row.len()).unwrap().to_le_bytes());
            data.extend_from_slice(row);
        }
        let shape = vec![rows.len() as u64];
        Tensor { name: "text".to_owned(), datatype: Datatype::Bytes, shape, data: data.into() }
    }

    proptest! {
        #[test]
        fn rows_of_byte_strings_survive_slicing(
            rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..20),
            start in 0_usize..20,
            count in 0_usize..20,
        ) {
            let start = start.min(rows.len());
            let count = count.min(rows.len() - start);
            let tensor = bytes_tensor(&rows);
            prop_assert_eq!(tensor.check(), Ok(()));
            let slice = tensor.slice_rows(start, count);
            prop_assert_eq!(slice.check(), Ok(()));
            prop_assert_eq!(slice, bytes_tensor(&rows[start..start + count]));
        }

        #[test]
        fn selected_rows_of_byte_strings_are_copied(
            rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..20),
            chosen in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let chosen: Vec<_> = chosen.iter().map(|index| index.index(rows.len())).collect();
            let wanted: Vec<_> = chosen.iter().map(|row| rows[*row].clone()).collect();
            prop_assert_eq!(bytes_tensor(&rows).select_rows(&chosen), bytes_tensor(&wanted));
        }

        #[test]
        fn checking_arbitrary_bytes_never_panics(
            shape in prop::collection::vec(any::<u64>(), 0..4),
            data in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            for datatype in [Datatype::Bytes, Datatype::Fp32, Datatype::Bool] {
                let (shape, data) = (shape.clone(), data.clone());
                let _ = Tensor { name: String::new(), datatype, shape, data: data.into() }.check();
            }
        }
    }

    #[test]
    fn numbers_are_sliced_by_row() {
        let data: Vec<u8> = (0_i32..6).flat_map(i32::to_le_bytes).collect();
        let name = "x".to_owned();
        let tensor =
            Tensor { name, datatype: Datatype::Int32, shape: vec![3, 2], data: data.into() };
        assert_eq!(tensor.check(), Ok(()));
        let row = tensor.slice_rows(1, 1);
        assert_eq!(row.shape, [1, 2]);
        assert_eq!(row.data, [2_i32, 3].map(i32::to_le_bytes).concat());
    }

    #[test]
    fn non_finite_elements_of_every_float_are_found() {
        let is_finite = |datatype, data: &[u8]| {
            let (name, shape, data) = (String::new(), vec![1], data.to_vec());
            Tensor { name, datatype, shape, data: data.into() }.is_finite()
        };
        for finite in [0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45] {
            assert!(is_finite(Datatype::Fp32, &finite.to_le_bytes()), "{finite}");
            assert!(is_finite(Datatype::Bf16, &finite.to_le_bytes()[2..]), "{finite}");
            assert!(is_finite(Datatype::Fp64, &f64::from(finite).to_le_bytes()), "{finite}");
        }
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!is_finite(Datatype::Fp32, &odd.to_le_bytes()), "{odd}");
            assert!(!is_finite(Datatype::Bf16, &odd.to_le_bytes()[2..]), "{odd}");
            assert!(!is_finite(Datatype::Fp64, &f64::from(odd).to_le_bytes()), "{odd}");
        }
        assert!(is_finite(Datatype::Fp64, &f64::MAX.to_le_bytes()));
        // Half precision: the largest number, infinity, a NaN.
        for (bits, finite) in [(0x7bff_u16, true), (0x7c00, false), (0xfe00, false)] {
            assert_eq!(is_finite(Datatype::Fp16, &bits.to_le_bytes()), finite, "{bits:x}");
        }
        assert!(is_finite(Datatype::Int32, &[0xff; 4]));
    }

    #[test]
    fn data_of_the_wrong_length_is_rejected() {
        let tensor = |datatype, shape: &[u64], data: &[u8]| {
            let (shape, data) = (shape.to_vec(), data.to_vec());
            Tensor { name: String::new(), datatype, shape, data: data.into() }.check()
        };
        assert_eq!(tensor(Datatype::Fp32, &[2], &[0; 8]), Ok(()));
        assert_eq!(tensor(Datatype::Fp32, &[2], &[0; 7]), Err(TensorError::Length));
        assert_eq!(tensor(Datatype::Fp32, &[], &[0; 4]), Err(TensorError::NoBatch));
        assert_eq!(tensor(Datatype::Fp32, &[u64::MAX, 2], &[]), Err(TensorError::TooLarge));
        assert_eq!(tensor(Datatype::Bytes, &[1], &[9, 0, 0, 0]), Err(TensorError::Length));
        assert_eq!(tensor(Datatype::Bytes, &[2], &[0, 0, 0, 0]), Err(TensorError::Length));
    }
}
