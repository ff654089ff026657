//! Predictions as gRPC methods: messages are bytes, which the codecs of the pipeline read and write.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use prost::bytes::{Buf as _, BufMut as _};
use tonic::Status;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::metadata::MetadataValue;
use tonic::server::{ClientStreamingService, Grpc};

use super::call::Call;
use crate::edge::error::ApiError;
use crate::edge::pipeline::Reply;
use crate::edge::policy::Policy;
use crate::edge::request_log::RequestLog;

/// The sizes of answers that are compressed if their requests were: a smaller one is one packet anyhow, and
/// compressing a larger one would hold up others.
const COMPRESSED: std::ops::RangeInclusive<usize> = 1 << 10..=1 << 20;

/// Marks an answer that was given before, as the HTTP header of this name does.
const REPLAYED_METADATA: &str = "idempotency-replayed";

/// Messages as bytes, within the limits on bodies.
pub(super) fn grpc(policy: &Policy) -> Grpc<Raw> {
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(policy.limits.body_bytes);
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        grpc = grpc.accept_compressed(encoding).send_compressed(encoding);
    }
    grpc.max_encoding_message_size(usize::MAX)
}

/// Answer a call that has one request and one response. `predict` reads the request's message, so that it
/// can reject the call before.
pub(super) async fn unary<P>(
    policy: &Policy,
    call: &Arc<Call>,
    request: Request,
    predict: P,
) -> Response
where
    P: AsyncFnOnce(Streaming<Bytes>, &mut RequestLog) -> Result<Reply, ApiError>,
{
    let answer = async |request: tonic::Request<Streaming<Bytes>>| {
        let mut log = call.log_guard();
        let outcome = predict(request.into_inner(), &mut log).await;
        let Reply { answer, is_replay, comparison } = log.respond(outcome)?.into_inner();
        call.compare_when_sent(comparison);
        let mut response = tonic::Response::new(answer.encoded.body.clone());
        if is_replay {
            let yes = MetadataValue::from_static("true");
            response.metadata_mut().insert(REPLAYED_METADATA, yes);
        }
        if !COMPRESSED.contains(&answer.encoded.body.len()) {
            response.disable_compression();
        }
        Ok(response)
    };
    grpc(policy).client_streaming(Once(Some(answer)), request).await.map(Body::new)
}

/// The only message of a call.
pub(super) async fn read_message(
    call: &Call,
    mut messages: Streaming<Bytes>,
) -> Result<Bytes, ApiError> {
    let read_error = |status| call.read_error(&status);
    let message = messages.message().await.map_err(read_error)?;
    let message = message.ok_or_else(|| ApiError::malformed("the message is malformed"))?;
    match messages.message().await.map_err(read_error)? {
        None => Ok(message),
        Some(_) => Err(ApiError::malformed("the method takes one message")),
    }
}

/// Adapts a function to tonic's trait for a method, which is called once.
struct Once<F>(Option<F>);

impl<F, A> ClientStreamingService<Bytes> for Once<F>
where
    F: FnOnce(tonic::Request<Streaming<Bytes>>) -> A,
    A: Future<Output = Result<tonic::Response<Bytes>, Status>>,
{
    type Response = Bytes;
    type Future = A;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> A {
        let answer = self.0.take().expect("the method is called once");
        answer(request)
    }
}

/// Does not decode messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
