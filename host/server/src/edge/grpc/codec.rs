//! Messages to values, within bounds on what they take in memory.
//!
//! Two bytes can stand for a whole empty message inside another, and a byte for a number of eight: a
//! message within its limit could otherwise fill gigabytes before anybody looks at it. So its fields are
//! counted first, by what the type says of them.

use std::marker::PhantomData;
use std::sync::LazyLock;

use prost::Message;
use prost::bytes::{Buf as _, Bytes};
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use super::{pb, status};
use crate::edge::error::ApiError;
use crate::edge::json::MAX_VALUES;

/// What a message costs beside its own fields, in values: a tensor without anything in it takes some
/// two hundred bytes, and a value of JSON, of which there may be as many, 72.
const MESSAGE_COST: usize = 4;

/// How deep messages may be in each other. Ours are four deep, and no signature makes deeper ones.
const MAX_DEPTH: usize = 16;

/// The types of `proto/inference.proto`.
pub(crate) static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let files = &include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"))[..];
    DescriptorPool::decode(files).expect("the build has made them")
});

/// Messages that callers send to services of ours.
pub(crate) trait Asked: Message + Default + 'static {
    /// The type's full name.
    const NAME: &'static str;
}

macro_rules! asked {
    ($($name:ident)*) => {
        $(impl Asked for pb::$name {
            const NAME: &'static str = concat!("inference.", stringify!($name));
        })*
    };
}

asked! {
    ServerLiveRequest ServerReadyRequest ModelReadyRequest ServerMetadataRequest ModelMetadataRequest
    ModelInferRequest ModelConfigRequest ModelStatisticsRequest RepositoryIndexRequest
    RepositoryModelLoadRequest RepositoryModelUnloadRequest
}

/// What turns messages into bytes and back.
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Asked + Send,
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
        item.encode(buffer).map_err(|_full| Status::internal("the answer does not fit"))
    }
}

impl<U: Asked> Decoder for Codec<(), U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let message = POOL.get_message_by_name(U::NAME).ok_or_else(|| Status::internal(U::NAME))?;
        count(&bytes, &message)?;
        U::decode(bytes).map(Some).map_err(|_error| malformed())
    }
}

/// A message of a prediction, which the generated service does not read.
pub(super) fn decode<M: Asked>(bytes: Bytes) -> Result<M, ApiError> {
    let message = POOL.get_message_by_name(M::NAME).ok_or_else(ApiError::internal)?;
    let refused =
        |status: Status| status::of_library(status.code()).unwrap_or_else(ApiError::internal);
    count(&bytes, &message).map_err(refused)?;
    M::decode(bytes).map_err(|_error| refused(malformed()))
}

fn malformed() -> Status {
    Status::new(Code::InvalidArgument, "the message is malformed")
}

/// Whether a message has at most [`MAX_VALUES`].
pub(crate) fn count(bytes: &[u8], message: &MessageDescriptor) -> Result<(), Status> {
    Counter { left: MAX_VALUES }.message(bytes, message, MAX_DEPTH)
}

struct Counter {
    /// How many more values there may be.
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
        // Fields of a kind come one after the other.
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
                // Raw contents are as long as what they stand for, and so are numbers of one length.
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

    fn check(message: &pb::ModelInferRequest) -> Result<(), Code> {
        let descriptor = POOL.get_message_by_name(pb::ModelInferRequest::NAME).unwrap();
        count(&message.encode_to_vec(), &descriptor).map_err(|status| status.code())
    }

    #[test]
    fn every_type_is_known() {
        for name in [pb::ServerLiveRequest::NAME, pb::RepositoryModelUnloadRequest::NAME] {
            assert!(POOL.get_message_by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn what_would_swell_is_not_read() {
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
    fn garbage_is_malformed() {
        let descriptor = POOL.get_message_by_name(pb::ModelInferRequest::NAME).unwrap();
        for bad in [&b"\x0a\x05abc"[..], b"\xff", b"\x0b", b"\x2a\x03\x22\x05a", b"\x08"] {
            assert_eq!(
                count(bad, &descriptor).unwrap_err().code(),
                Code::InvalidArgument,
                "{bad:?}"
            );
        }
        // What this server does not know yet is left unread.
        assert!(count(b"\xfa\x07\x03abc", &descriptor).is_ok());
    }
}
