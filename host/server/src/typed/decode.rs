//! Decodes messages into tensors, directly from the wire format.
//!
//! Tensors take at most eight times the size of the message: an element of UINT64 may be encoded in
//! one byte.

use half::{bf16, f16};

use super::wire::{WireError, WireReader, WireType};
use super::{FieldEncoding, MessageField, ModelService, Scalar};
use guesthouse_model::record::{RecordError, RowIssue};
use guesthouse_model::{Datatype, Tensor};

/// A message that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is malformed.
    #[error("the message is malformed: {0}")]
    Wire(#[from] WireError),
    /// There are too many rows.
    #[error("there are too many rows")]
    TooManyRows,
    /// A field does not match the input.
    #[error(transparent)]
    Row(#[from] RecordError),
}

/// The decoded part of a field.
#[derive(Default)]
struct Value {
    is_set: bool,
    elements: u64,
    data: Vec<u8>,
    shape: Vec<u64>,
}

/// A number is out of the range of its datatype.
struct OutOfRange;

type Read = Result<Result<(), OutOfRange>, WireError>;

impl ModelService {
    /// Decode the inputs of a `PredictRequest` as tensors of one row.
    ///
    /// # Errors
    /// [`DecodeError`], if the message is malformed or too large.
    pub fn decode_request(&self, message: &[u8]) -> Result<Vec<Tensor>, DecodeError> {
        let mut values: Vec<Value> = self.inputs.iter().map(|_| Value::default()).collect();
        let mut reader = WireReader(message);
        while !reader.is_empty() {
            let (number, wire) = reader.key()?;
            let place = usize::try_from(number - 1).unwrap_or(usize::MAX);
            match self.inputs.get(place) {
                Some(member) => {
                    let read = values[place].read(member, wire, &mut reader)?;
                    read.map_err(|OutOfRange| unacceptable(member, "is out of range"))?;
                }
                None => reader.skip(number, wire)?,
            }
        }
        let mut tensors = Vec::new();
        for (member, value) in self.inputs.iter().zip(values) {
            tensors.extend(value.into_tensor(member)?);
        }
        Ok(tensors)
    }
}

/// Split the `BatchPredictRequest` of any service into its messages, at most `most`.
///
/// # Errors
/// [`DecodeError`], if the message is malformed or too large.
pub fn decode_batch(batch: &[u8], most: usize) -> Result<Vec<&[u8]>, DecodeError> {
    let (mut reader, mut messages) = (WireReader(batch), Vec::new());
    while !reader.is_empty() {
        let (number, wire) = reader.key()?;
        if number != 1 {
            reader.skip(number, wire)?;
            continue;
        }
        wire.expect(WireType::Delimited)?;
        if messages.len() == most {
            return Err(DecodeError::TooManyRows);
        }
        messages.push(reader.delimited()?);
    }
    Ok(messages)
}

impl Value {
    fn read(&mut self, member: &MessageField, wire: WireType, reader: &mut WireReader<'_>) -> Read {
        self.is_set = true;
        match member.form {
            FieldEncoding::Single => {
                // The last value counts.
                self.data.clear();
                self.elements = 0;
                self.element(member, wire, reader)
            }
            FieldEncoding::Flat(_) => self.elements(member, wire, reader),
            FieldEncoding::Shaped => {
                wire.expect(WireType::Delimited)?;
                self.shaped(member, WireReader(reader.delimited()?))
            }
        }
    }

    fn shaped(&mut self, member: &MessageField, mut reader: WireReader<'_>) -> Read {
        while !reader.is_empty() {
            let (number, wire) = reader.key()?;
            match number {
                1 if wire == WireType::Delimited => {
                    let mut sizes = WireReader(reader.delimited()?);
                    while !sizes.is_empty() {
                        self.shape.push(sizes.varint()?);
                    }
                }
                1 => {
                    wire.expect(WireType::Varint)?;
                    self.shape.push(reader.varint()?);
                }
                2 => {
                    if let Err(OutOfRange) = self.elements(member, wire, &mut reader)? {
                        return Ok(Err(OutOfRange));
                    }
                }
                _ => reader.skip(number, wire)?,
            }
        }
        Ok(Ok(()))
    }

    /// Decode one element, or packed elements.
    fn elements(
        &mut self,
        member: &MessageField,
        wire: WireType,
        reader: &mut WireReader<'_>,
    ) -> Read {
        if !member.scalar.is_packed() || wire != WireType::Delimited {
            return self.element(member, wire, reader);
        }
        let mut packed = WireReader(reader.delimited()?);
        while !packed.is_empty() {
            if let Err(OutOfRange) = self.element(member, member.scalar.wire(), &mut packed)? {
                return Ok(Err(OutOfRange));
            }
        }
        Ok(Ok(()))
    }

    fn element(
        &mut self,
        member: &MessageField,
        wire: WireType,
        reader: &mut WireReader<'_>,
    ) -> Read {
        wire.expect(member.scalar.wire())?;
        self.elements += 1;
        let data = &mut self.data;
        match member.scalar {
            Scalar::String | Scalar::Bytes => {
                let bytes = reader.delimited()?;
                let Ok(length) = u32::try_from(bytes.len()) else { return Ok(Err(OutOfRange)) };
                data.extend_from_slice(&length.to_le_bytes());
                data.extend_from_slice(bytes);
                Ok(Ok(()))
            }
            Scalar::Float => Ok(float(member.datatype, reader.fixed()?, data)),
            Scalar::Double => {
                data.extend_from_slice(&reader.fixed::<8>()?);
                Ok(Ok(()))
            }
            _ => Ok(whole(member.datatype, reader.varint()?, data)),
        }
    }

    fn into_tensor(self, member: &MessageField) -> Result<Option<Tensor>, DecodeError> {
        let mut shape = vec![1];
        match &member.form {
            FieldEncoding::Single if !self.is_set => return Ok(None),
            FieldEncoding::Single => {}
            FieldEncoding::Flat(sizes) => {
                // Without elements, the field is absent, unless an empty row is valid.
                if self.elements == 0 && !sizes.contains(&None) && !sizes.contains(&Some(0)) {
                    return Ok(None);
                }
                let Some(sizes) = flat_shape(sizes, self.elements) else {
                    let reason = format!("has {} elements, which is no row of it", self.elements);
                    return Err(unacceptable(member, &reason));
                };
                shape.extend(sizes);
            }
            FieldEncoding::Shaped if !self.is_set => return Ok(None),
            FieldEncoding::Shaped => {
                let mut product = Some(1_u64);
                for size in &self.shape {
                    product = product.and_then(|product| product.checked_mul(*size));
                }
                if product != Some(self.elements) {
                    return Err(unacceptable(member, "has more or fewer values than its shape"));
                }
                shape.extend(self.shape);
            }
        }
        let (name, datatype, data) = (member.of.clone(), member.datatype, self.data);
        Ok(Some(Tensor { name, datatype, shape, data: data.into() }))
    }
}

fn unacceptable(member: &MessageField, reason: &str) -> DecodeError {
    let (field, reason) = (member.of.clone(), reason.to_owned());
    DecodeError::Row(RecordError::Unacceptable(vec![RowIssue { row: 0, field, reason }]))
}

/// The shape of a row with this number of elements, if there is one.
fn flat_shape(sizes: &[Option<u32>], elements: u64) -> Option<Vec<u64>> {
    let mut fixed = 1_u64;
    for size in sizes.iter().flatten() {
        fixed = fixed.checked_mul(u64::from(*size))?;
    }
    let any = if sizes.contains(&None) { elements.checked_div(fixed)? } else { 1 };
    (fixed.checked_mul(any)? == elements)
        .then(|| sizes.iter().map(|size| size.map_or(any, u64::from)).collect())
}

/// Append a float, rounded to the nearest value of the datatype, ties to even. A finite number is
/// never rounded to infinity.
fn float(datatype: Datatype, bytes: [u8; 4], data: &mut Vec<u8>) -> Result<(), OutOfRange> {
    let value = f32::from_le_bytes(bytes);
    let (narrow, is_infinite) = match datatype {
        Datatype::Fp16 => {
            let narrow = f16::from_f32(value);
            (narrow.to_le_bytes(), narrow.is_infinite())
        }
        Datatype::Bf16 => {
            let narrow = bf16::from_f32(value);
            (narrow.to_le_bytes(), narrow.is_infinite())
        }
        _ => {
            data.extend_from_slice(&bytes);
            return Ok(());
        }
    };
    if is_infinite && value.is_finite() {
        return Err(OutOfRange);
    }
    data.extend_from_slice(&narrow);
    Ok(())
}

/// Append an integer. Values beyond `uint32` or `int32` are truncated, as protobuf requires.
fn whole(datatype: Datatype, value: u64, data: &mut Vec<u8>) -> Result<(), OutOfRange> {
    let [a, b, c, d, ..] = value.to_le_bytes();
    let (unsigned, signed) = (u32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([a, b, c, d]));
    let out = |_| OutOfRange;
    match datatype {
        Datatype::Bool => data.push(u8::from(value != 0)),
        Datatype::Uint8 => data.push(u8::try_from(unsigned).map_err(out)?),
        Datatype::Uint16 => {
            data.extend_from_slice(&u16::try_from(unsigned).map_err(out)?.to_le_bytes());
        }
        Datatype::Int8 => {
            data.extend_from_slice(&i8::try_from(signed).map_err(out)?.to_le_bytes());
        }
        Datatype::Int16 => {
            data.extend_from_slice(&i16::try_from(signed).map_err(out)?.to_le_bytes());
        }
        Datatype::Uint32 | Datatype::Int32 => data.extend_from_slice(&[a, b, c, d]),
        Datatype::Uint64
        | Datatype::Int64
        | Datatype::Fp16
        | Datatype::Fp32
        | Datatype::Fp64
        | Datatype::Bytes
        | Datatype::Bf16 => data.extend_from_slice(&value.to_le_bytes()),
    }
    Ok(())
}
