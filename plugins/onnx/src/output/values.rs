//! What postprocessing computes with: rows of numbers, flags or texts.

use guesthouse_guest::tract_onnx::prelude::{DatumType, Tensor as Array};
use guesthouse_guest::{Datatype, Dimension, PredictError, Tensor};

/// The elements of all rows, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Elements {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
    Flags(Vec<bool>),
    Texts(Vec<String>),
}

/// Elements and their dimensions, of which the first one is the number of rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Values {
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: Elements,
}

/// What is known about values before there are any.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub(crate) kind: Kind,
    /// The dimensions of a row.
    pub(crate) shape: Vec<Dimension>,
    /// Integers are indexes below this number.
    pub(crate) choices: Option<usize>,
    /// The least and the greatest number that there can be.
    pub(crate) bounds: Option<(f64, f64)>,
    /// The texts that there can be.
    pub(crate) labels: Option<Vec<String>>,
}

/// The type of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Floats,
    Integers,
    Flags,
    Texts,
}

impl Form {
    pub(crate) fn new(datatype: Datatype, shape: &[Dimension]) -> Self {
        let kind = match datatype {
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => Kind::Floats,
            Datatype::Bool => Kind::Flags,
            Datatype::Bytes => Kind::Texts,
            _ => Kind::Integers,
        };
        Self { kind, shape: shape.to_vec(), choices: None, bounds: None, labels: None }
    }

    pub(crate) fn datatype(&self) -> Datatype {
        match self.kind {
            Kind::Floats => Datatype::Fp32,
            Kind::Integers => Datatype::Int64,
            Kind::Flags => Datatype::Bool,
            Kind::Texts => Datatype::Bytes,
        }
    }
}

impl Values {
    /// The values of the graph.
    pub(crate) fn from_array(array: &Array) -> Result<Self, PredictError> {
        let kind = array.datum_type();
        let elements = if kind == DatumType::String {
            Elements::Texts(elements(array)?)
        } else if kind == DatumType::Bool {
            Elements::Flags(elements(array)?)
        } else if kind.is_float() {
            Elements::Floats(elements(&*array.cast_to::<f32>().map_err(PredictError::failed)?)?)
        } else {
            Elements::Integers(elements(&*array.cast_to::<i64>().map_err(PredictError::failed)?)?)
        };
        Ok(Self { shape: array.shape().to_vec(), elements })
    }

    /// As a tensor for the caller.
    pub(crate) fn tensor(self, name: &str) -> Tensor {
        let shape: Vec<u64> = self.shape.iter().map(|size| *size as u64).collect();
        let raw = |datatype, data| Tensor::raw(name, datatype, shape.clone(), data);
        match self.elements {
            Elements::Floats(floats) => {
                raw(Datatype::Fp32, floats.into_iter().flat_map(f32::to_le_bytes).collect())
            }
            Elements::Integers(integers) => {
                raw(Datatype::Int64, integers.into_iter().flat_map(i64::to_le_bytes).collect())
            }
            Elements::Flags(flags) => {
                raw(Datatype::Bool, flags.into_iter().map(u8::from).collect())
            }
            Elements::Texts(texts) => {
                Tensor::texts(name, texts.iter().map(String::as_str)).reshaped(shape)
            }
        }
    }
}

fn elements<T: guesthouse_guest::tract_onnx::prelude::Datum + Clone>(
    array: &Array,
) -> Result<Vec<T>, PredictError> {
    let view = array.to_plain_array_view::<T>().map_err(PredictError::failed)?;
    Ok(view.iter().cloned().collect())
}
