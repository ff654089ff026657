//! The Open Inference Protocol over REST: JSON, and after it the tensors in binary form.

mod answer;
mod elements;
mod reader;
pub(in crate::edge) mod request;
#[cfg(any(test, feature = "fuzzing"))]
mod round_trip;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};

use self::answer::OutputForms;
use self::request::{Layout, RestRequest};
use super::tensors::{TensorRequest, WantedOutputs};
use super::{Codec, Encoded, FieldValue, Inputs, Outputs};
use crate::config::Limits;
use crate::edge::body::{RequestBody, media_type};
use crate::edge::error::ApiError;
use crate::edge::request_id::RequestId;
use guesthouse_model::{Datatype, Signature, Tensor};
use guesthouse_runtime::version::ServableVersion;

/// A request of the protocol over REST.
pub(in crate::edge) struct OipCodec {
    layout: Layout,
    /// The body, if it is the one input and nothing else.
    raw: Option<Bytes>,
    request: TensorRequest,
    forms: OutputForms,
    id: Option<String>,
    wanted: WantedOutputs,
}

impl OipCodec {
    /// By the headers of a request.
    pub(in crate::edge) fn new(headers: &HeaderMap) -> Result<Self, ApiError> {
        let layout = Layout::from_headers(headers)?;
        check_media_type(headers)?;
        let (request, wanted) = (TensorRequest::default(), WantedOutputs::default());
        // A caller that sends no JSON gets binary outputs.
        let forms = OutputForms::new(true, &[])?;
        Ok(Self { layout, raw: None, request, forms, id: None, wanted })
    }
}

/// Check the media type of a body. Which part of it is JSON depends on another header.
pub(in crate::edge) fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    media_type(headers, &["application/json", "application/octet-stream"]).map(drop)
}

impl Codec for OipCodec {
    fn is_batch(&self) -> bool {
        false
    }

    fn context(&self) -> String {
        format!("Open Inference REST {:?}", self.layout)
    }

    fn parse(&mut self, body: &RequestBody, _: &Limits, _: &mut RequestId) -> Result<(), ApiError> {
        if self.layout == Layout::Raw {
            self.raw = Some(body.bytes.clone());
            return Ok(());
        }
        let RestRequest { request, binary_outputs } = request::parse(&body.bytes, self.layout)?;
        self.forms = OutputForms::new(binary_outputs, &request.outputs)?;
        self.request = request;
        Ok(())
    }

    fn field(&self, name: &str) -> Option<FieldValue> {
        self.request.field(name)
    }

    fn take_field(&mut self, name: &str, _: &Signature) -> Option<FieldValue> {
        self.request.take_field(name)
    }

    fn decode(&mut self, signature: &Signature, limits: &Limits) -> Result<Inputs, ApiError> {
        let mut request = std::mem::take(&mut self.request);
        match self.raw.take() {
            Some(body) => request.inputs.push(raw_input(signature, body)?),
            None => self.forms.check(signature, &request.outputs)?,
        }
        self.id = request.id.take();
        let (inputs, wanted) = request.decode(signature, limits)?;
        self.wanted = wanted;
        Ok(inputs)
    }

    fn encode(
        self,
        version: &ServableVersion,
        outputs: Outputs,
        _request_id: &str,
    ) -> Result<Encoded, ApiError> {
        let outputs = self.wanted.take(outputs.into_tensors()?);
        let body = answer::write(version.id(), self.id.as_deref(), &outputs, &self.forms)?;
        let content_type = match body.json_length {
            None => "application/json",
            Some(_) => "application/octet-stream",
        };
        let (status, body, json_length) = (StatusCode::OK, body.bytes.into(), body.json_length);
        Ok(Encoded { status, content_type, json_length, body })
    }
}

/// Read a body for the fuzzer; `length` is the length of its JSON, if a header has one.
#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::edge) fn fuzz_body(body: &[u8], length: Option<usize>) {
    round_trip::read(body, length.map_or(Layout::Json, Layout::JsonThenTensors));
}

/// The one row of the one input, from its elements or the bytes of its byte string. One dimension of variable
/// size is determined by the length of the body.
fn raw_input(signature: &Signature, body: Bytes) -> Result<Tensor, ApiError> {
    let [field] = &signature.inputs[..] else {
        return Err(ApiError::malformed("a body without JSON is for models with one input"));
    };
    let Some(size) = field.datatype.element_size() else {
        if field.row_shape.iter().any(|size| size.is_some_and(|size| size != 1)) {
            return Err(ApiError::malformed("a body without JSON must be a single byte string"));
        }
        let length = u32::try_from(body.len());
        let length = length.map_err(|_error| ApiError::malformed("the byte string is too long"))?;
        let shape = vec![1; field.row_shape.len() + 1];
        let data = [&length.to_le_bytes(), &body[..]].concat().into();
        return Ok(Tensor { name: field.name.clone(), datatype: Datatype::Bytes, shape, data });
    };
    let known = field.row_shape.iter().flatten();
    let known = known.map(|size| u64::from(*size)).try_fold(size as u64, u64::checked_mul);
    let unknown = field.row_shape.iter().filter(|size| size.is_none()).count();
    let length = body.len() as u64;
    let rest = match (known, unknown) {
        (Some(known), 0) if known == length => 1,
        (Some(known), 1) if known > 0 && length.is_multiple_of(known) => length / known,
        _ => {
            let message = "the length of the body is not that of the model's one input";
            return Err(ApiError::malformed(message));
        }
    };
    let row = field.row_shape.iter().map(|size| size.map_or(rest, u64::from));
    let shape = std::iter::once(1).chain(row).collect();
    let (name, datatype, data) = (field.name.clone(), field.datatype, body);
    Ok(Tensor { name, datatype, shape, data })
}
