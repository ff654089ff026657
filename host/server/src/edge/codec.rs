//! What the protocols do differently: decoding a request and encoding its answer.
//!
//! There are four codecs: [`rest`], the Open Inference Protocol over REST ([`oip`]) and over gRPC
//! ([`oip_grpc`]), and the gRPC services made from signatures ([`signature`]). Everything else is the
//! pipeline's, which is the only caller of a [`Codec`].

pub(super) mod oip;
pub(super) mod oip_grpc;
pub(super) mod rest;
pub(super) mod signature;
pub(super) mod tensors;

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::http::{HeaderName, StatusCode};

use super::body::RequestBody;
use super::error::{ApiError, ErrorCode};
use super::request_id::RequestId;
use crate::config::Limits;
use guesthouse_model::{Signature, Tensor};
use guesthouse_runtime::inference::QueueOptions;
use guesthouse_runtime::version::ServableVersion;

/// Carries the idempotency key beside the inputs, for callers that cannot set headers.
pub(super) const IDEMPOTENCY_FIELD: &str = "idempotency_key";

/// How many bytes of a body are JSON, where tensors follow: of requests and of answers.
pub(super) const JSON_LENGTH_HEADER: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// Decodes one request and encodes its answer. The pipeline calls `parse`, `take_field`, `decode` and
/// `encode` in this order, each once.
pub(super) trait Codec: Send {
    /// Whether the request is a batch, which is shed before single rows are.
    fn is_batch(&self) -> bool;

    /// What an answer depends on besides the model, the selector and the body: requests with the same
    /// idempotency key have to agree on it.
    fn context(&self) -> String;

    /// The body in a form that is the same whenever the same request is sent again.
    fn canonical<'a>(&'a self, body: &'a [u8]) -> Cow<'a, [u8]> {
        Cow::Borrowed(body)
    }

    /// Parse the body, as far as that is possible without the signature of a version. A request id in
    /// the body replaces `request_id`.
    ///
    /// # Errors
    /// The body is malformed, or over a limit.
    fn parse(
        &mut self,
        body: &RequestBody,
        limits: &Limits,
        request_id: &mut RequestId,
    ) -> Result<(), ApiError>;

    /// The value of a field that says something about the request as a whole.
    fn field(&self, name: &str) -> Option<FieldValue>;

    /// The value of a field that stands beside the inputs and is none of them; it is taken away.
    fn take_field(&mut self, name: &str, signature: &Signature) -> Option<FieldValue>;

    /// The inputs, validated against the signature of the version that answers. What was parsed is
    /// dropped: it can be many times as large as the tensors.
    ///
    /// # Errors
    /// The inputs are not those of the signature, or over a limit.
    fn decode(&mut self, signature: &Signature, limits: &Limits) -> Result<Inputs, ApiError>;

    /// The answer.
    ///
    /// # Errors
    /// The outputs have no form in the protocol.
    fn encode(
        self,
        version: &ServableVersion,
        outputs: Outputs,
        request_id: &str,
    ) -> Result<Encoded, ApiError>;
}

/// Whether a request is one row or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Multiplicity {
    /// `{"text": "…"}`
    Single,
    /// `{"instances": [{"text": "…"}, …]}`, or `{"texts": ["…", …]}` for a model whose one
    /// required input is `text`.
    Batch,
}

/// The value of a field that stands beside the inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FieldValue {
    Null,
    /// A text, or bytes that are none.
    Text(Vec<u8>),
    /// An integer, as it is written in decimal.
    Integer(String),
    Other,
}

/// The inputs of a request.
#[derive(Default)]
pub(super) struct Inputs {
    /// One for each input of the signature, in its order.
    pub(super) tensors: Vec<Tensor>,
    /// The rows of the request, those included that failed already.
    pub(super) rows: usize,
    /// Where the caller accepts that some rows fail: which ones are in the tensors.
    pub(super) partial: Option<PartialRows>,
    pub(super) queue_options: QueueOptions,
}

/// The rows of a request whose caller accepts that some of them fail.
#[derive(Default)]
pub(super) struct PartialRows {
    /// The rows of the request that are in the tensors, in their order.
    pub(super) places: Vec<usize>,
    /// The rows that failed already.
    pub(super) failed: BTreeMap<usize, ApiError>,
}

/// The outputs of a request.
pub(super) struct Outputs {
    /// Of each call of the guest one tensor for each output of the signature; the rows follow each other.
    pub(super) calls: Vec<Vec<Tensor>>,
    /// Where the caller accepts that some rows fail: which ones are in the tensors.
    pub(super) partial: Option<PartialRows>,
}

/// An answer as a protocol has it.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    /// How many bytes of the body are JSON, where tensors in their raw form follow.
    pub(super) json_length: Option<usize>,
    pub(super) body: Bytes,
}

impl Encoded {
    /// A message of gRPC.
    pub(super) fn message(message: Vec<u8>) -> Self {
        let content_type = "application/grpc";
        Self { status: StatusCode::OK, content_type, json_length: None, body: message.into() }
    }
}

impl Outputs {
    /// One tensor for each output, with all rows.
    pub(super) fn into_tensors(self) -> Result<Vec<Tensor>, ApiError> {
        let mut calls = self.calls.into_iter();
        let mut all = calls.next().ok_or_else(|| ApiError::malformed("there are no rows"))?;
        for call in calls {
            for (whole, part) in all.iter_mut().zip(&call) {
                if !whole.append(part) {
                    return Err(ragged(&whole.name));
                }
            }
        }
        Ok(all)
    }
}

/// The rows of a tensor have the same shape; those of a large request run in several calls.
fn ragged(output: &str) -> ApiError {
    let message =
        format!("output `{output}` has another shape for some of the rows: send fewer at once");
    ApiError::new(ErrorCode::UnacceptableInput, message)
}
