//! Decoding of messages, with a limit on the memory that the decoded message takes.
//!
//! Two bytes can encode an empty message inside another, and one byte a number of eight, so that a message
//! within its size limit could fill gigabytes of memory. The values are therefore counted before the message is
//! decoded.

use std::marker::PhantomData;
use std::sync::LazyLock;

use prost::Message;
use prost::bytes::Buf as _;
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::edge::json::MAX_VALUES;

/// The cost of a message in addition to its fields, in values: an empty tensor takes some 200 bytes, and a
/// JSON value, of which there may be as many, 72.
const MESSAGE_COST: usize = 4;

/// The deepest nesting of messages. No type of ours is nested more than four deep.
const MAX_DEPTH: usize = 16;

/// The types of `proto/inference.proto`.
pub(crate) static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let files = &include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"))[..];
    DescriptorPool::decode(files).expect("the build script encodes it")
});

/// The type of a request.
pub(crate) trait RequestMessage: Message + Default + 'static {
    /// The type's full name.
    const NAME: &'static str;
}

/// The codec of the generated services.
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: RequestMessage + Send,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Codec<T, ()>;
    type Decoder = Codec<(), U>;

    fn encoder(&mut self) -> Self::Encoder {
        Codec::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Codec::default()
    }
}

impl<T: Message> Encoder for Codec<T, ()> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|_full| Status::internal("the response does not fit"))
    }
}

impl<U: RequestMessage> Decoder for Codec<(), U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let message = POOL.get_message_by_name(U::NAME).ok_or_else(|| Status::internal(U::NAME))?;
        count(&bytes, &message)?;
        U::decode(bytes).map(Some).map_err(|_error| malformed())
    }
}

fn malformed() -> Status {
    Status::new(Code::InvalidArgument, "the message is malformed")
}

/// Check that a message has at most [`MAX_VALUES`].
pub(crate) fn count(bytes: &[u8], message: &MessageDescriptor) -> Result<(), Status> {
    Counter { left: MAX_VALUES }.message(bytes, message, MAX_DEPTH)
}

struct Counter {
    /// How many more values are allowed.
    left: usize,
}

impl Counter {
    fn take(&mut self, values: usize) -> Result<(), Status> {
        let too_many = || Status::new(Code::ResourceExhausted, "the message has too many values");
        self.left = self.left.checked_sub(values).ok_or_else(too_many)?;
        Ok(())
    }

    fn message(
        &mut self,
        mut bytes: &[u8],
        message: &MessageDescriptor,
        depth: usize,
    ) -> Result<(), Status> {
        let depth = depth.checked_sub(1).ok_or_else(malformed)?;
        // Equal fields usually follow each other, so the last one is remembered.
        let mut last: Option<(u32, Option<Kind>)> = None;
        while !bytes.is_empty() {
            let key = u32::try_from(varint(&mut bytes)?).map_err(|_error| malformed())?;
            let (number, wire_type) = (key >> 3, key & 7);
            self.take(1)?;
            let content = match wire_type {
                0 => varint(&mut bytes).map(|_value| &[][..])?,
                1 => split(&mut bytes, 8)?,
                2 => {
                    let length = varint(&mut bytes)?;
                    split(&mut bytes, usize::try_from(length).unwrap_or(usize::MAX))?
                }
                5 => split(&mut bytes, 4)?,
                _ => return Err(malformed()),
            };
            if wire_type != 2 {
                continue;
            }
            if last.as_ref().is_none_or(|(last, _)| *last != number) {
                last = Some((number, message.get_field(number).map(|field| field.kind())));
            }
            let kind = last.as_ref().and_then(|(_, kind)| kind.as_ref());
            match kind {
                Some(Kind::Message(inner)) => {
                    self.take(MESSAGE_COST)?;
                    self.message(content, inner, depth)?;
                }
                // These are not larger when they are decoded.
                None
                | Some(
                    Kind::Bytes
                    | Kind::String
                    | Kind::Float
                    | Kind::Double
                    | Kind::Bool
                    | Kind::Fixed32
                    | Kind::Fixed64
                    | Kind::Sfixed32
                    | Kind::Sfixed64,
                ) => {}
                Some(_) => self.take(content.iter().filter(|byte| **byte < 0x80).count())?,
            }
        }
        Ok(())
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Status> {
    prost::encoding::decode_varint(bytes).map_err(|_error| malformed())
}

fn split<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Status> {
    let (content, rest) = bytes.split_at_checked(length).ok_or_else(malformed)?;
    *bytes = rest;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::pb;

    fn check(message: &pb::ModelInferRequest) -> Result<(), Code> {
        let descriptor = POOL.get_message_by_name(pb::ModelInferRequest::NAME).unwrap();
        count(&message.encode_to_vec(), &descriptor).map_err(|status| status.code())
    }

    #[test]
    fn the_pool_has_every_request_type() {
        for name in [pb::ServerLiveRequest::NAME, pb::RepositoryModelUnloadRequest::NAME] {
            assert!(POOL.get_message_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_message_with_too_many_values_is_rejected() {
        let empty = pb::model_infer_request::InferInputTensor::default();
        let with = |inputs: usize| pb::ModelInferRequest {
            inputs: vec![empty.clone(); inputs],
            ..Default::default()
        };
        assert_eq!(check(&with(1000)), Ok(()));
        assert_eq!(check(&with(MAX_VALUES / 4)), Err(Code::ResourceExhausted));
        let raw = |count: usize| pb::ModelInferRequest {
            raw_input_contents: vec![Default::default(); count],
            ..Default::default()
        };
        assert_eq!(check(&raw(MAX_VALUES)), Ok(()));
        assert_eq!(check(&raw(MAX_VALUES + 1)), Err(Code::ResourceExhausted));
        let numbers = |count: usize| {
            let contents = pb::InferTensorContents {
                int_contents: vec![-1; count],
                fp32_contents: vec![0.0; 2 * count],
                ..Default::default()
            };
            let mut message = with(1);
            message.inputs[0].contents = Some(contents);
            message
        };
        assert_eq!(check(&numbers(MAX_VALUES / 2)), Ok(()));
        assert_eq!(check(&numbers(MAX_VALUES)), Err(Code::ResourceExhausted));
    }

    #[test]
    fn invalid_messages_are_malformed() {
        let descriptor = POOL.get_message_by_name(pb::ModelInferRequest::NAME).unwrap();
        for bad in [&b"\x0a\x05abc"[..], b"\xff", b"\x0b", b"\x2a\x03\x22\x05a", b"\x08"] {
            assert_eq!(
                count(bad, &descriptor).unwrap_err().code(),
                Code::InvalidArgument,
                "{bad:?}"
            );
        }
        // Unknown fields are ignored.
        assert!(count(b"\xfa\x07\x03abc", &descriptor).is_ok());
    }
}
