//! `ModelInfer` and `ModelStreamInfer` of `inference.GRPCInferenceService`: the predictions of the Open
//! Inference Protocol over gRPC.

use std::future::ready;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request;
use axum::response::Response;

use super::call::Call;
use super::codec::decode;
use super::pb;
use super::raw::{read_message, unary};
use super::serving::Serving;
use crate::edge::Edge;
use crate::edge::body::RequestBody;
use crate::edge::codec::oip_grpc::{OipGrpcCodec, size};
use crate::edge::codec::tensors::{in_protocol_words, named};
use crate::edge::error::ApiError;
use crate::edge::idempotency;
use crate::edge::observe::Account;
use crate::edge::pipeline::{Reply, RequestHead, predict};

/// The paths of the two methods.
pub(super) const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
pub(super) const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Answer `ModelInfer`.
pub(super) async fn model_infer(serving: &Serving, request: Request) -> Response {
    let call = match Call::of(request.extensions()) {
        Ok(call) => call,
        Err(status) => return status.into_http(),
    };
    let policy = serving.edge.policy.load_full();
    unary(&policy, &call, request, async |messages, account| {
        let bytes = read_message(&call, messages).await?;
        let message = Message::decode(bytes)?;
        infer(&serving.edge, &call, message, account).await
    })
    .await
}

/// A `ModelInferRequest`, and the bytes that it was decoded from.
pub(super) struct Message {
    pub(super) request: pb::ModelInferRequest,
    bytes: Bytes,
}

impl Message {
    pub(super) fn decode(bytes: Bytes) -> Result<Self, ApiError> {
        Ok(Self { request: decode(bytes.clone())?, bytes })
    }
}

/// Answer one message of a call.
pub(super) async fn infer(
    edge: &Edge,
    call: &Call,
    message: Message,
    account: &mut Account,
) -> Result<Reply, ApiError> {
    let Message { request, bytes } = message;
    let permit = call.take_message(bytes.len().max(size(&request)))?;
    let (policy, snapshot) = (edge.policy.load_full(), Arc::clone(&edge.registry.snapshot()));
    let (model, headers) = (request.model_name.clone(), &call.headers);
    let target = named(&model, &request.model_version);
    let head = RequestHead { edge, policy: &policy, snapshot, headers, target };
    let codec = OipGrpcCodec::new(request, headers.contains_key(idempotency::KEY_HEADER));
    let codec = if call.method.is_stream { codec.mark_last() } else { codec };
    let body = RequestBody::new(bytes, Some(permit));
    let outcome = predict(head, Ok(codec), ready(Ok(body)), account).await;
    outcome.map_err(|error| in_protocol_words(error, &model))
}
