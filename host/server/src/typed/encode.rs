//! Encodes tensors as messages, directly in the wire format.

use half::{bf16, f16};
use semver::Version;

use super::wire::{put_delimited, put_key, put_varint};
use super::{FieldEncoding, MODEL_VERSION, MessageField, ModelService, Scalar};
use guesthouse_model::{Datatype, Tensor};

/// The largest response message, in bytes. Guests decide the number of outputs, and numbers take up
/// to ten times the size that they have in a tensor.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The outputs exceed the size of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outputs take over {MAX_MESSAGE_BYTES} bytes")]
pub struct MessageTooLarge;

/// Encodes the rows of outputs, one message at a time.
pub struct EncodedRows<'a> {
    outputs: Vec<Output<'a>>,
    version: String,
    left: u64,
}

/// The remaining rows of an output.
struct Output<'a> {
    number: u32,
    member: &'a MessageField,
    shape: &'a [u64],
    /// The elements of a row.
    elements: u64,
    data: &'a [u8],
}

impl ModelService {
    /// Encode the outputs of a version. It may have other outputs than the service; only common
    /// ones are encoded. The outputs must have been validated.
    pub fn encode_rows<'a>(&'a self, version: &Version, outputs: &'a [Tensor]) -> EncodedRows<'a> {
        let left = outputs.first().map_or(0, Tensor::rows);
        let of = |(number, member): (u32, &'a MessageField)| {
            let output = outputs
                .iter()
                .find(|output| output.name == member.of && output.datatype == member.datatype)?;
            let shape = output.shape.get(1..)?;
            let elements = shape.iter().product();
            Some(Output { number, member, shape, elements, data: &output.data })
        };
        let outputs = (1..).zip(&self.outputs).filter_map(of).collect();
        EncodedRows { outputs, version: version.to_string(), left }
    }
}

impl Iterator for EncodedRows<'_> {
    type Item = Result<Vec<u8>, MessageTooLarge>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut message = Vec::new();
        for output in &mut self.outputs {
            if let Err(error) = output.put_row(&mut message) {
                self.left = 0;
                return Some(Err(error));
            }
        }
        put_delimited(MODEL_VERSION, self.version.as_bytes(), &mut message);
        Some(Ok(message))
    }
}

impl Output<'_> {
    fn put_row(&mut self, message: &mut Vec<u8>) -> Result<(), MessageTooLarge> {
        match self.member.form {
            FieldEncoding::Single => self.put_elements(self.number, message)?,
            FieldEncoding::Flat(_) if self.member.scalar.is_packed() => {
                let mut packed = Vec::new();
                self.put_packed(&mut packed)?;
                // An empty list is not encoded.
                if !packed.is_empty() {
                    put_delimited(self.number, &packed, message);
                }
            }
            FieldEncoding::Flat(_) => self.put_elements(self.number, message)?,
            FieldEncoding::Shaped => {
                let (mut shape, mut inside) = (Vec::new(), Vec::new());
                self.shape.iter().for_each(|size| put_varint(*size, &mut shape));
                put_delimited(1, &shape, &mut inside);
                if self.member.scalar.is_packed() {
                    let mut packed = Vec::new();
                    self.put_packed(&mut packed)?;
                    if !packed.is_empty() {
                        put_delimited(2, &packed, &mut inside);
                    }
                } else {
                    self.put_elements(2, &mut inside)?;
                }
                put_delimited(self.number, &inside, message);
            }
        }
        check(message)
    }

    /// Encode each element of the row with a key.
    fn put_elements(&mut self, number: u32, out: &mut Vec<u8>) -> Result<(), MessageTooLarge> {
        for _ in 0..self.elements {
            put_key(number, self.member.scalar.wire(), out);
            self.put_element(out);
            check(out)?;
        }
        Ok(())
    }

    fn put_packed(&mut self, out: &mut Vec<u8>) -> Result<(), MessageTooLarge> {
        for _ in 0..self.elements {
            self.put_element(out);
            check(out)?;
        }
        Ok(())
    }

    /// Encode the next element, which a valid tensor has.
    fn put_element(&mut self, out: &mut Vec<u8>) {
        match self.member.datatype {
            Datatype::Bool => put_varint(u64::from(self.take::<1>() != [0]), out),
            Datatype::Uint8 => put_varint(u8::from_le_bytes(self.take()).into(), out),
            Datatype::Uint16 => put_varint(u16::from_le_bytes(self.take()).into(), out),
            Datatype::Uint32 => put_varint(u32::from_le_bytes(self.take()).into(), out),
            Datatype::Uint64 => put_varint(u64::from_le_bytes(self.take()), out),
            Datatype::Int8 => put_signed(i8::from_le_bytes(self.take()).into(), out),
            Datatype::Int16 => put_signed(i16::from_le_bytes(self.take()).into(), out),
            Datatype::Int32 => put_signed(i32::from_le_bytes(self.take()).into(), out),
            Datatype::Int64 => put_signed(i64::from_le_bytes(self.take()), out),
            Datatype::Fp16 => {
                let value = f16::from_le_bytes(self.take()).to_f32();
                out.extend_from_slice(&value.to_le_bytes());
            }
            Datatype::Bf16 => {
                let value = bf16::from_le_bytes(self.take()).to_f32();
                out.extend_from_slice(&value.to_le_bytes());
            }
            Datatype::Fp32 => out.extend_from_slice(&self.take::<4>()),
            Datatype::Fp64 => out.extend_from_slice(&self.take::<8>()),
            Datatype::Bytes => {
                let length = u32::from_le_bytes(self.take()) as usize;
                let (bytes, rest) = self.data.split_at_checked(length).unwrap_or_default();
                self.data = rest;
                if self.member.scalar == Scalar::String {
                    // As in JSON, invalid UTF-8 is replaced.
                    put_text(&String::from_utf8_lossy(bytes), out);
                } else {
                    put_varint(bytes.len() as u64, out);
                    out.extend_from_slice(bytes);
                }
            }
        }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((bytes, rest)) = self.data.split_first_chunk() else { return [0; N] };
        self.data = rest;
        *bytes
    }
}

fn put_signed(value: i64, out: &mut Vec<u8>) {
    put_varint(u64::from_le_bytes(value.to_le_bytes()), out);
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_varint(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn check(message: &[u8]) -> Result<(), MessageTooLarge> {
    if message.len() > MAX_MESSAGE_BYTES { Err(MessageTooLarge) } else { Ok(()) }
}

/// Encode a `BatchPredictResponse` of any service.
///
/// # Errors
/// [`MessageTooLarge`].
pub fn encode_batch(rows: EncodedRows<'_>) -> Result<Vec<u8>, MessageTooLarge> {
    let mut message = Vec::new();
    for row in rows {
        put_delimited(1, &row?, &mut message);
        check(&message)?;
    }
    Ok(message)
}

/// Encode a `PredictStreamResponse` of any service with a `PredictResponse`.
pub fn encode_stream_response(response: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(response.len() + 11);
    put_delimited(1, response, &mut message);
    message
}

/// Encode a `PredictStreamResponse` of any service with an error.
pub fn encode_stream_error(code: &str, message: &str) -> Vec<u8> {
    let (mut error, mut answer) = (Vec::new(), Vec::new());
    put_delimited(1, code.as_bytes(), &mut error);
    put_delimited(2, message.as_bytes(), &mut error);
    put_delimited(2, &error, &mut answer);
    answer
}
