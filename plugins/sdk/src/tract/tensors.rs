//! Between the tensors of a call and those of tract, whose elements lie in memory in the same way.

use tract_onnx::prelude::{Datum, DatumType, f16, tensor1};
use tract_onnx::tract_core::internal::{TractResult, bail, ensure};

use super::{ModelOutputs, failed};
use crate::{Batch, Datatype, PredictError, Tensor};

impl Batch {
    /// An input as an array for [`Model::run`](crate::Model::run). Byte strings have to be texts.
    ///
    /// # Errors
    /// The signature has no such input, or tract has no such datatype.
    pub fn array(&self, name: &str) -> Result<tract_onnx::prelude::Tensor, PredictError> {
        let sizes = self.shape(name)?.iter().map(|size| usize::try_from(*size));
        let shape = sizes.collect::<Result<Vec<_>, _>>().map_err(PredictError::failed)?;
        let datatype = self.datatype(name)?;
        if datatype == Datatype::Bytes {
            let texts: Vec<_> = self.texts(name)?.into_iter().map(str::to_owned).collect();
            return tensor1(&texts).into_shape(&shape).map_err(failed);
        }
        array(datatype, &shape, self.data(name, datatype)?).map_err(failed)
    }
}

fn array(
    datatype: Datatype,
    shape: &[usize],
    bytes: &[u8],
) -> TractResult<tract_onnx::prelude::Tensor> {
    use tract_onnx::prelude::Tensor;
    match datatype {
        Datatype::Uint8 => Tensor::from_shape(shape, bytes),
        Datatype::Int8 => elements(shape, bytes, i8::from_le_bytes),
        Datatype::Uint16 => elements(shape, bytes, u16::from_le_bytes),
        Datatype::Int16 => elements(shape, bytes, i16::from_le_bytes),
        Datatype::Uint32 => elements(shape, bytes, u32::from_le_bytes),
        Datatype::Int32 => elements(shape, bytes, i32::from_le_bytes),
        Datatype::Uint64 => elements(shape, bytes, u64::from_le_bytes),
        Datatype::Int64 => elements(shape, bytes, i64::from_le_bytes),
        Datatype::Fp16 => elements(shape, bytes, f16::from_le_bytes),
        Datatype::Fp32 => elements(shape, bytes, f32::from_le_bytes),
        Datatype::Fp64 => elements(shape, bytes, f64::from_le_bytes),
        // The upper half of an f32.
        Datatype::Bf16 => {
            elements(shape, bytes, |[low, high]| f32::from_le_bytes([0, 0, low, high]))
        }
        Datatype::Bool => elements(shape, bytes, |[byte]: [u8; 1]| byte != 0),
        Datatype::Bytes => bail!("byte strings are no array"),
    }
}

fn elements<T: Datum + Copy, const N: usize>(
    shape: &[usize],
    bytes: &[u8],
    decode: impl Fn([u8; N]) -> T,
) -> TractResult<tract_onnx::prelude::Tensor> {
    let mut array = tract_onnx::prelude::Tensor::zero_dt(T::datum_type(), shape)?;
    let mut view = array.try_as_plain_ram_mut()?;
    let elements = view.as_slice_mut::<T>()?;
    let (chunks, rest) = bytes.as_chunks();
    ensure!(chunks.len() == elements.len() && rest.is_empty(), "the data has another length");
    for (element, bytes) in elements.iter_mut().zip(chunks) {
        *element = decode(*bytes);
    }
    Ok(array)
}

/// The datatype of signatures with these elements.
pub(super) fn datatype(elements: DatumType) -> TractResult<Datatype> {
    Ok(match elements {
        DatumType::Bool => Datatype::Bool,
        DatumType::U8 => Datatype::Uint8,
        DatumType::I8 => Datatype::Int8,
        DatumType::U16 => Datatype::Uint16,
        DatumType::I16 => Datatype::Int16,
        DatumType::U32 => Datatype::Uint32,
        DatumType::I32 => Datatype::Int32,
        DatumType::U64 => Datatype::Uint64,
        DatumType::I64 => Datatype::Int64,
        DatumType::F16 => Datatype::Fp16,
        DatumType::F32 => Datatype::Fp32,
        DatumType::F64 => Datatype::Fp64,
        DatumType::String => Datatype::Bytes,
        other => bail!("there is no datatype for elements of type {other:?}"),
    })
}

impl ModelOutputs {
    /// An output as a tensor with this name.
    ///
    /// # Errors
    /// [`PredictError::Failed`] if the graph has no such output, or if tensors have no such
    /// datatype.
    pub fn tensor(&self, index: usize, name: &str) -> Result<Tensor, PredictError> {
        let output = self.output(index)?;
        let datatype = datatype(output.datum_type()).map_err(failed)?;
        let shape = output.shape().iter().map(|size| *size as u64).collect();
        let view = output.try_as_plain_ram().map_err(failed)?;
        let data = match datatype {
            Datatype::Bytes => encoded(view.as_slice::<String>().map_err(failed)?),
            _ => view.as_bytes().to_vec(),
        };
        Ok(Tensor::raw(name, datatype, shape, data))
    }

    /// An output as an array.
    ///
    /// # Errors
    /// [`PredictError::Failed`] if the graph has no such output.
    pub fn array(&self, index: usize) -> Result<&tract_onnx::prelude::Tensor, PredictError> {
        self.output(index).map(|output| &**output)
    }
}

/// Texts in the encoding of the contract.
fn encoded(texts: &[String]) -> Vec<u8> {
    let mut data = Vec::new();
    for text in texts {
        let length = u32::try_from(text.len()).expect("a guest's memory is at most 4 GiB");
        data.extend_from_slice(&length.to_le_bytes());
        data.extend_from_slice(text.as_bytes());
    }
    data
}
