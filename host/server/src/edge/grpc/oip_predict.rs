//! `ModelInfer` and `ModelStreamInfer` of `inference.GRPCInferenceService`: the predictions of the Open
//! Inference Protocol over gRPC.

use std::future::ready;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request;
use axum::response::Response;
use prost::Message as _;

use super::call::Call;
use super::predict::{read_message, unary};
use super::serving::Serving;
use super::status;
use crate::edge::body::RequestBody;
use crate::edge::codec::oip_grpc::{OipGrpcCodec, message_size};
use crate::edge::codec::tensors::{in_protocol_words, named};
use crate::edge::error::ApiError;
use crate::edge::idempotency;
use crate::edge::pb::{self, RequestMessage as _};
use crate::edge::pipeline::{Reply, RequestHead, predict};
use crate::edge::request_log::RequestLog;
use crate::edge::state::Edge;

/// The paths of the two methods.
pub(super) const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
pub(super) const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Answer `ModelInfer`.
pub(super) async fn model_infer(serving: &Serving, request: Request) -> Response {
    let call = match Call::from_extensions(request.extensions()) {
        Ok(call) => call,
        Err(status) => return status.into_http(),
    };
    let policy = serving.edge.policy.load_full();
    unary(&policy, &call, request, async |messages, log| {
        let bytes = read_message(&call, messages).await?;
        let message = InferMessage::decode(bytes)?;
        infer(&serving.edge, &call, message, log).await
    })
    .await
}

/// A `ModelInferRequest`, and the bytes that it is decoded from.
pub(super) struct InferMessage {
    pub(super) request: pb::ModelInferRequest,
    bytes: Bytes,
}

impl InferMessage {
    pub(super) fn decode(bytes: Bytes) -> Result<Self, ApiError> {
        let descriptor = pb::POOL.get_message_by_name(pb::ModelInferRequest::NAME);
        let descriptor = descriptor.ok_or_else(ApiError::internal)?;
        pb::count(&bytes, &descriptor).map_err(|status| {
            status::library_error(status.code()).unwrap_or_else(ApiError::internal)
        })?;
        let request = pb::ModelInferRequest::decode(bytes.clone())
            .map_err(|_error| ApiError::malformed("the message is malformed"))?;
        Ok(Self { request, bytes })
    }
}

/// Answer one message of a call.
pub(super) async fn infer(
    edge: &Edge,
    call: &Call,
    message: InferMessage,
    log: &mut RequestLog,
) -> Result<Reply, ApiError> {
    let InferMessage { request, bytes } = message;
    let permit = call.take_permit(bytes.len().max(message_size(&request)))?;
    let (policy, snapshot) = (edge.policy.load_full(), Arc::clone(&edge.registry.snapshot()));
    let (model, headers) = (request.model_name.clone(), &call.headers);
    let target = named(&model, &request.model_version);
    let head = RequestHead { edge, policy: &policy, snapshot, headers, target };
    let codec = OipGrpcCodec::new(request, headers.contains_key(idempotency::KEY_HEADER));
    let codec = if call.method.is_stream { codec.mark_last() } else { codec };
    let body = RequestBody::new(bytes, Some(permit));
    let outcome = predict(head, Ok(codec), ready(Ok(body)), log).await;
    outcome.map_err(|error| in_protocol_words(error, &model))
}
