//! The Open Inference Protocol over gRPC: tensors have typed contents or raw contents.
//!
//! A request with raw contents gets raw contents. A request with typed contents gets both, because some
//! clients read the ones and some the others. The parameter `binary_data_output` overrides this. FP16 and BF16
//! have raw contents only.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prost::Message as _;
use prost::bytes::Bytes;

use super::tensors::{
    MAX_PARAMETERS, Parameter, Parameters, RequestedOutput, TensorRequest, WantedOutputs,
    copy_small_parts,
};
use super::{Codec, Encoded, FieldValue, IDEMPOTENCY_FIELD, Inputs, Outputs};
use crate::config::Limits;
use crate::edge::body::RequestBody;
use crate::edge::error::ApiError;
use crate::edge::pb;
use crate::edge::request_id::RequestId;
use guesthouse_model::{Datatype, Signature, Tensor, VersionId, bytes_elements};
use guesthouse_runtime::version::ServableVersion;
use pb::infer_parameter::ParameterChoice;
use pb::model_infer_request::InferInputTensor;
use pb::model_infer_response::InferOutputTensor;

/// The most characters of a caller's text in an error message.
const MAX_SHOWN: usize = 64;

/// The contents of outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    Raw,
    Typed,
    Both,
}

/// The parameter by which clients of Triton's decoupled models ask to mark the last response, and the mark.
/// Here, every response is the last one of its request.
const WANTS_MARK: &str = "triton_enable_empty_final_response";
const MARK: &str = "triton_final_response";

/// One `ModelInferRequest`.
pub(in crate::edge) struct OipGrpcCodec {
    /// Taken when it is parsed.
    message: pb::ModelInferRequest,
    /// The message as it is written by this server, if the request has an idempotency key. Clients write
    /// maps in any order.
    canonical: Option<Vec<u8>>,
    request: TensorRequest,
    id: Option<String>,
    wanted: WantedOutputs,
    contents: Contents,
    marks_last: bool,
}

impl OipGrpcCodec {
    /// For a message; `has_key` tells whether its metadata has an idempotency key.
    pub(in crate::edge) fn new(message: pb::ModelInferRequest, has_key: bool) -> Self {
        let has_key = has_key || message.parameters.contains_key(IDEMPOTENCY_FIELD);
        let canonical = has_key.then(|| message.encode_to_vec());
        let (request, wanted) = (TensorRequest::default(), WantedOutputs::default());
        let (id, contents, marks_last) = (None, Contents::Both, false);
        Self { message, canonical, request, id, wanted, contents, marks_last }
    }

    /// Mark the answer as the last one of its request, if the caller of a stream asks for that.
    pub(in crate::edge) fn mark_last(self) -> Self {
        let wanted = self.message.parameters.get(WANTS_MARK);
        let value = wanted.and_then(|wanted| wanted.parameter_choice.as_ref());
        let marks_last = matches!(value, Some(ParameterChoice::BoolParam(true)));
        Self { marks_last, ..self }
    }
}

impl Codec for OipGrpcCodec {
    fn is_batch(&self) -> bool {
        false
    }

    fn context(&self) -> String {
        "Open Inference gRPC".to_owned()
    }

    fn canonical<'a>(&'a self, body: &'a [u8]) -> Cow<'a, [u8]> {
        Cow::Borrowed(self.canonical.as_deref().unwrap_or(body))
    }

    fn parse(&mut self, _: &RequestBody, _: &Limits, _: &mut RequestId) -> Result<(), ApiError> {
        (self.request, self.contents) = read(std::mem::take(&mut self.message))?;
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
        let mut answer = write(version.id(), self.id, outputs, self.contents);
        if self.marks_last {
            let value =
                pb::InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
            answer.parameters.insert(MARK.to_owned(), value);
        }
        Ok(Encoded::message(answer.encode_to_vec()))
    }
}

/// The memory that the tensors of a decoded message take, in bytes.
pub(in crate::edge) fn message_size(message: &pb::ModelInferRequest) -> usize {
    let raw: usize = message.raw_input_contents.iter().map(Bytes::len).sum();
    let contents = message.inputs.iter().filter_map(|input| input.contents.as_ref());
    let typed = contents.map(|contents| {
        let bytes: usize = contents.bytes_contents.iter().map(Bytes::len).sum();
        bytes
            + contents.bytes_contents.len() * size_of::<Bytes>()
            + contents.bool_contents.len()
            + 4 * (contents.int_contents.len()
                + contents.uint_contents.len()
                + contents.fp32_contents.len())
            + 8 * (contents.int64_contents.len()
                + contents.uint64_contents.len()
                + contents.fp64_contents.len())
    });
    raw + typed.sum::<usize>()
}

/// Decode a message: the request, and the contents of its outputs.
fn read(message: pb::ModelInferRequest) -> Result<(TensorRequest, Contents), ApiError> {
    let message_bytes = message.encoded_len();
    let pb::ModelInferRequest { id, parameters, inputs, outputs, raw_input_contents: raw, .. } =
        message;
    let mut parameters = self::parameters(parameters)?;
    let is_raw = !raw.is_empty();
    let contents = match parameters.remove("binary_data_output") {
        None if is_raw => Contents::Raw,
        None => Contents::Both,
        Some(Parameter::Bool(true)) => Contents::Raw,
        Some(Parameter::Bool(false)) => Contents::Typed,
        Some(_) => return Err(ApiError::malformed("`binary_data_output` must be a boolean")),
    };
    let mut inputs = if is_raw {
        if raw.len() != inputs.len() {
            let message = "there must be raw contents for every input, or for none";
            return Err(ApiError::malformed(message));
        }
        let both = inputs.into_iter().zip(raw);
        both.map(|(input, raw)| tensor(input, Some(raw))).collect()
    } else {
        inputs.into_iter().map(|input| tensor(input, None)).collect::<Result<Vec<_>, _>>()
    }?;
    if is_raw {
        copy_small_parts(&mut inputs, message_bytes);
    }
    let outputs = outputs.into_iter().map(|output| {
        Ok(RequestedOutput { name: output.name, parameters: self::parameters(output.parameters)? })
    });
    let outputs = outputs.collect::<Result<_, ApiError>>()?;
    let id = Some(id).filter(|id| !id.is_empty());
    Ok((TensorRequest { id, parameters, inputs, outputs }, contents))
}

fn parameters(given: BTreeMap<String, pb::InferParameter>) -> Result<Parameters, ApiError> {
    if given.len() > MAX_PARAMETERS {
        return Err(ApiError::malformed(format!("there are over {MAX_PARAMETERS} parameters")));
    }
    let parameter = |(name, value): (String, pb::InferParameter)| {
        let value = match value.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(value),
            Some(ParameterChoice::Int64Param(value)) => Parameter::Int(value),
            Some(ParameterChoice::Uint64Param(value)) => Parameter::Uint(value),
            Some(ParameterChoice::DoubleParam(value)) => Parameter::Double(value),
            Some(ParameterChoice::StringParam(value)) => Parameter::Text(value),
            None => {
                let message = format!("parameter `{}` has no value", shown(&name));
                return Err(ApiError::malformed(message));
            }
        };
        Ok((name, value))
    };
    given.into_iter().map(parameter).collect()
}

fn shown(name: &str) -> String {
    name.chars().take(MAX_SHOWN).collect()
}

fn tensor(input: InferInputTensor, raw: Option<Bytes>) -> Result<Tensor, ApiError> {
    let InferInputTensor { name, datatype, shape, parameters, contents } = input;
    let wrong = |what: &str| ApiError::malformed(format!("input `{}` {what}", shown(&name)));
    // Other parameters of an input have no meaning here, but their number is limited as well.
    if self::parameters(parameters)?.keys().any(|key| key.starts_with("shared_memory_")) {
        return Err(wrong("is in shared memory, which is not supported"));
    }
    let datatype = Datatype::parse(&datatype).ok_or_else(|| wrong("has no known datatype"))?;
    let shape = shape.into_iter().map(u64::try_from).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_negative| wrong("has a negative dimension"))?;
    let contents = contents.unwrap_or_default();
    let data = match raw {
        Some(_) if contents != pb::InferTensorContents::default() => {
            return Err(wrong("has both contents and raw contents"));
        }
        Some(raw) => raw,
        None => self::raw(datatype, contents).map_err(wrong)?.into(),
    };
    // The length is validated with the signature.
    Ok(Tensor { name, datatype, shape, data })
}

/// Typed contents in binary form, or why they are invalid.
fn raw(datatype: Datatype, contents: pb::InferTensorContents) -> Result<Vec<u8>, &'static str> {
    use Datatype::{
        Bf16, Bool, Bytes, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32,
        Uint64,
    };
    let mut left = contents;
    let take = std::mem::take::<Vec<_>>;
    macro_rules! exact {
        ($values:expr) => {
            std::mem::take(&mut $values).into_iter().flat_map(|value| value.to_le_bytes()).collect()
        };
    }
    macro_rules! narrowed {
        ($values:expr, $type:ty) => {{
            let narrow = |value| <$type>::try_from(value).map(<$type>::to_le_bytes);
            let values = std::mem::take(&mut $values).into_iter().map(narrow);
            let all: Vec<_> = values
                .collect::<Result<_, _>>()
                .map_err(|_error| "has a number out of its datatype's range")?;
            all.into_flattened()
        }};
    }
    let data: Vec<u8> = match datatype {
        Bool => std::mem::take(&mut left.bool_contents).into_iter().map(u8::from).collect(),
        Int8 => narrowed!(left.int_contents, i8),
        Int16 => narrowed!(left.int_contents, i16),
        Int32 => exact!(left.int_contents),
        Int64 => exact!(left.int64_contents),
        Uint8 => narrowed!(left.uint_contents, u8),
        Uint16 => narrowed!(left.uint_contents, u16),
        Uint32 => exact!(left.uint_contents),
        Uint64 => exact!(left.uint64_contents),
        Fp32 => exact!(left.fp32_contents),
        Fp64 => exact!(left.fp64_contents),
        Bytes => {
            let mut data = Vec::new();
            for element in take(&mut left.bytes_contents) {
                let length = u32::try_from(element.len()).map_err(|_error| "is too long")?;
                data.extend_from_slice(&length.to_le_bytes());
                data.extend_from_slice(&element);
            }
            data
        }
        Fp16 | Bf16 => return Err("is of a datatype that has raw contents only"),
    };
    if left == pb::InferTensorContents::default() {
        Ok(data)
    } else {
        Err("has contents of another datatype")
    }
}

fn write(
    version: &VersionId,
    id: Option<String>,
    outputs: Vec<Tensor>,
    contents: Contents,
) -> pb::ModelInferResponse {
    let has_raw_only = |tensor: &Tensor| matches!(tensor.datatype, Datatype::Fp16 | Datatype::Bf16);
    // Raw contents are for all outputs or for none.
    let contents = if outputs.iter().any(has_raw_only) { Contents::Raw } else { contents };
    let (mut tensors, mut raw) = (Vec::with_capacity(outputs.len()), Vec::new());
    for output in outputs {
        let typed = (contents != Contents::Raw).then(|| typed(&output));
        let Tensor { name, datatype, shape, data } = output;
        // A dimension is at most the number of bytes, which is less than that.
        let shape = shape.into_iter().map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        tensors.push(InferOutputTensor {
            name,
            datatype: datatype.as_str().to_owned(),
            shape: shape.collect(),
            parameters: BTreeMap::new(),
            contents: typed,
        });
        if contents != Contents::Typed {
            raw.push(data);
        }
    }
    pb::ModelInferResponse {
        model_name: version.name.to_string(),
        model_version: version.version.to_string(),
        id: id.unwrap_or_default(),
        parameters: BTreeMap::new(),
        outputs: tensors,
        raw_output_contents: raw,
    }
}

/// The typed contents of a tensor.
fn typed(tensor: &Tensor) -> pb::InferTensorContents {
    use Datatype::{
        Bf16, Bool, Bytes, Fp16, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32,
        Uint64,
    };
    let mut contents = pb::InferTensorContents::default();
    macro_rules! each {
        ($type:ty) => {
            tensor
                .data
                .as_chunks()
                .0
                .iter()
                .map(|bytes| <$type>::from_le_bytes(*bytes).into())
                .collect()
        };
    }
    match tensor.datatype {
        Bool => contents.bool_contents = tensor.data.iter().map(|byte| *byte != 0).collect(),
        Int8 => contents.int_contents = each!(i8),
        Int16 => contents.int_contents = each!(i16),
        Int32 => contents.int_contents = each!(i32),
        Int64 => contents.int64_contents = each!(i64),
        Uint8 => contents.uint_contents = each!(u8),
        Uint16 => contents.uint_contents = each!(u16),
        Uint32 => contents.uint_contents = each!(u32),
        Uint64 => contents.uint64_contents = each!(u64),
        Fp32 => contents.fp32_contents = each!(f32),
        Fp64 => contents.fp64_contents = each!(f64),
        Bytes => {
            let elements = bytes_elements(&tensor.data).map(prost::bytes::Bytes::copy_from_slice);
            contents.bytes_contents = elements.collect();
        }
        Fp16 | Bf16 => {}
    }
    contents
}
