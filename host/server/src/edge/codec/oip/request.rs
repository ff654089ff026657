//! Parsing of request bodies: JSON, and after it the tensors in binary form.
//!
//! The fields of the JSON may be in any order, so `data` may come before the datatype by which it is parsed. It
//! is then skipped, and parsed in a second pass.

use std::borrow::Cow;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue};

use super::elements;
use super::reader::{JsonError, Read, Reader};
use crate::edge::codec::JSON_LENGTH_HEADER;
use crate::edge::codec::tensors::{
    MAX_PARAMETERS, Parameter, Parameters, RequestedOutput, TensorRequest, copy_small_parts,
};
use crate::edge::error::ApiError;
use guesthouse_model::{Datatype, Tensor};

/// The most inputs and the most outputs of a request: as many as a signature may have.
const MAX_TENSORS: usize = 1024;

/// The most dimensions of a shape; a row has at most 8.
const MAX_DIMENSIONS: usize = 16;

/// The most characters of a caller's text in an error message.
const MAX_SHOWN: usize = 64;

/// A parsed body.
#[derive(Debug, PartialEq)]
pub(super) struct RestRequest {
    pub(super) request: TensorRequest,
    /// Whether outputs are in binary form unless the request says otherwise.
    pub(super) binary_outputs: bool,
}

/// The layout of a body, by its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Only JSON.
    Json,
    /// So many bytes of JSON, then tensors in binary form.
    JsonThenTensors(usize),
    /// Only the elements of the one input.
    Raw,
}

impl Layout {
    /// By the headers of a request.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut values = headers.get_all(JSON_LENGTH_HEADER).iter();
        let length = match (values.next(), values.next()) {
            (None, _) => return Ok(Self::Json),
            (Some(length), None) => parse_length(length),
            (Some(_), Some(_)) => None,
        };
        match length {
            Some(0) => Ok(Self::Raw),
            Some(length) => Ok(Self::JsonThenTensors(length)),
            None => {
                let message = "Inference-Header-Content-Length must be a number of bytes";
                Err(ApiError::malformed(message))
            }
        }
    }
}

/// Digits only, without a sign.
fn parse_length(value: &HeaderValue) -> Option<usize> {
    let text = value.to_str().ok()?;
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

impl From<JsonError> for ApiError {
    fn from(JsonError { what, at }: JsonError) -> Self {
        Self::malformed(format!("the body is malformed: {what} (byte {at})"))
    }
}

/// An input that is being parsed.
#[derive(Debug, Default)]
struct Input {
    name: Option<String>,
    datatype: Option<Datatype>,
    shape: Option<Vec<u64>>,
    parameters: Parameters,
    has_data: bool,
    /// None if it was skipped, because the datatype was not known.
    data: Option<(Vec<u8>, elements::Nesting)>,
}

/// The fields of the JSON.
#[derive(Debug, Default)]
struct Envelope {
    id: Option<String>,
    parameters: Option<Parameters>,
    inputs: Option<Vec<Input>>,
    outputs: Option<Vec<RequestedOutput>>,
}

/// Parse a body, whose memory the binary tensors share.
pub(super) fn parse(body: &Bytes, layout: Layout) -> Result<RestRequest, ApiError> {
    let (json, tensors) = match layout {
        Layout::JsonThenTensors(length) if length > body.len() => {
            let message = "Inference-Header-Content-Length is more than the body has";
            return Err(ApiError::malformed(message));
        }
        Layout::JsonThenTensors(length) => (&body[..length], body.slice(length..)),
        Layout::Json | Layout::Raw => (&body[..], Bytes::new()),
    };
    let text =
        str::from_utf8(json).map_err(|_error| ApiError::malformed("the JSON is not UTF-8"))?;
    let mut envelope = Envelope::default();
    envelope.read(text)?;
    let Envelope { id, parameters, inputs, outputs } = envelope;
    let parameters = parameters.unwrap_or_default();
    let binary_outputs = flag(&parameters, "binary_data_output")?;
    let mut inputs = with_tensors(inputs.unwrap_or_default(), tensors)?;
    if let Layout::JsonThenTensors(_) = layout {
        copy_small_parts(&mut inputs, body.len());
    }
    let outputs = outputs.unwrap_or_default();
    let request = TensorRequest { id, parameters, inputs, outputs };
    Ok(RestRequest { request, binary_outputs })
}

/// Whether a request for the index of the model repository is for models that are ready only.
pub(in crate::edge) fn parse_only_ready(body: &[u8]) -> Result<bool, ApiError> {
    let mut only_ready = None;
    fields(body, |reader, field| match field {
        "ready" => once(reader, &mut only_ready, |reader| reader.boolean()),
        _ => reader.skip(),
    })?;
    Ok(only_ready.unwrap_or(false))
}

/// The parameters of a request to load or to unload a model.
pub(in crate::edge) fn parse_parameters(body: &[u8]) -> Result<Parameters, ApiError> {
    let mut given = None;
    fields(body, |reader, field| match field {
        "parameters" => once(reader, &mut given, parameters),
        _ => reader.skip(),
    })?;
    Ok(given.unwrap_or_default())
}

/// Read the fields of an object; an empty body has none.
fn fields(
    body: &[u8],
    field: impl FnMut(&mut Reader<'_>, &str) -> Read<()>,
) -> Result<(), ApiError> {
    let text =
        str::from_utf8(body).map_err(|_error| ApiError::malformed("the JSON is not UTF-8"))?;
    if text.trim_ascii().is_empty() {
        return Ok(());
    }
    let mut reader = Reader::new(text);
    reader.object(field)?;
    Ok(reader.end()?)
}

/// The value of a boolean parameter; false if it is missing.
pub(super) fn flag(parameters: &Parameters, name: &str) -> Result<bool, ApiError> {
    match parameters.get(name) {
        None => Ok(false),
        Some(Parameter::Bool(flag)) => Ok(*flag),
        Some(_) => Err(ApiError::malformed(format!("parameter `{name}` must be true or false"))),
    }
}

fn shown(name: &str) -> String {
    name.chars().take(MAX_SHOWN).collect()
}

fn reject_shared_memory(name: &str, parameters: &Parameters) -> Result<(), ApiError> {
    if parameters.keys().any(|key| key.starts_with("shared_memory_")) {
        let name = shown(name);
        return Err(ApiError::malformed(format!("`{name}`: shared memory is not supported")));
    }
    Ok(())
}

/// The inputs. Those without `data` are in the bytes after the JSON, in their order and without a rest.
fn with_tensors(inputs: Vec<Input>, mut tensors: Bytes) -> Result<Vec<Tensor>, ApiError> {
    let mut taken = Vec::with_capacity(inputs.len());
    for input in inputs {
        let Input { name, datatype, shape, parameters, has_data, data } = input;
        let name = name.ok_or_else(|| ApiError::malformed("an input has no name"))?;
        let wrong = |what: &str| {
            let name = shown(&name);
            ApiError::malformed(format!("input `{name}` {what}"))
        };
        reject_shared_memory(&name, &parameters)?;
        let datatype = datatype.ok_or_else(|| wrong("has no datatype"))?;
        let shape = shape.ok_or_else(|| wrong("has no shape"))?;
        let size = match parameters.get("binary_data_size") {
            None => None,
            Some(Parameter::Int(size)) => usize::try_from(*size).ok(),
            Some(Parameter::Uint(size)) => usize::try_from(*size).ok(),
            Some(_) => None,
        };
        let data = match (parameters.contains_key("binary_data_size"), has_data) {
            (true, true) => return Err(wrong("has both `data` and `binary_data_size`")),
            (false, false) => return Err(wrong("has no data")),
            (true, false) => {
                let size = size.ok_or_else(|| wrong("has a malformed binary_data_size"))?;
                if size > tensors.len() {
                    return Err(wrong("has a binary_data_size beyond the body's end"));
                }
                tensors.split_to(size)
            }
            (false, true) => {
                let (data, nesting) = data.unwrap_or_default();
                if !nesting.fits(&shape) {
                    return Err(wrong("has data that is not nested like its shape"));
                }
                data.into()
            }
        };
        taken.push(Tensor { name, datatype, shape, data });
    }
    if !tensors.is_empty() {
        return Err(ApiError::malformed("the body has bytes that belong to no input"));
    }
    Ok(taken)
}

/// Read a field that may occur once; `null` counts as missing.
pub(super) fn once<T>(
    reader: &mut Reader<'_>,
    place: &mut Option<T>,
    read: impl FnOnce(&mut Reader<'_>) -> Read<T>,
) -> Read<()> {
    if place.is_some() {
        return Err(reader.error("a field is there twice"));
    }
    if !reader.takes_null()? {
        *place = Some(read(reader)?);
    }
    Ok(())
}

impl Envelope {
    fn read(&mut self, text: &str) -> Read<()> {
        let mut reader = Reader::new(text);
        reader.object(|reader, field| match field {
            "id" => once(reader, &mut self.id, |reader| reader.string().map(Cow::into_owned)),
            "parameters" => once(reader, &mut self.parameters, parameters),
            "inputs" => once(reader, &mut self.inputs, inputs),
            "outputs" => once(reader, &mut self.outputs, outputs),
            // Unknown fields are ignored: some clients repeat the model's name.
            _ => reader.skip(),
        })?;
        reader.end()?;
        let is_skipped = |input: &Input| input.has_data && input.data.is_none();
        match &mut self.inputs {
            Some(inputs) if inputs.iter().any(is_skipped) => parse_skipped(text, inputs),
            _ => Ok(()),
        }
    }
}

fn inputs(reader: &mut Reader<'_>) -> Read<Vec<Input>> {
    let mut inputs = Vec::new();
    reader.array(|reader| {
        if inputs.len() == MAX_TENSORS {
            return Err(reader.error("there are too many inputs"));
        }
        inputs.push(input(reader)?);
        Ok(())
    })?;
    Ok(inputs)
}

fn input(reader: &mut Reader<'_>) -> Read<Input> {
    let mut input = Input::default();
    let mut parameters = None;
    reader.object(|reader, field| match field {
        "name" => once(reader, &mut input.name, |reader| reader.string().map(Cow::into_owned)),
        "datatype" => once(reader, &mut input.datatype, datatype),
        "shape" => once(reader, &mut input.shape, shape),
        "parameters" => once(reader, &mut parameters, self::parameters),
        "data" => {
            if input.has_data {
                return Err(reader.error("a field is there twice"));
            }
            input.has_data = !reader.takes_null()?;
            match input.datatype {
                _ if !input.has_data => Ok(()),
                None => reader.skip(),
                Some(datatype) => {
                    input.data = Some(data(reader, datatype)?);
                    Ok(())
                }
            }
        }
        _ => reader.skip(),
    })?;
    input.parameters = parameters.unwrap_or_default();
    Ok(input)
}

/// Parse the data that was skipped.
fn parse_skipped(text: &str, inputs: &mut [Input]) -> Read<()> {
    Reader::new(text).object(|reader, field| {
        if field != "inputs" || reader.peek()? != b'[' {
            return reader.skip();
        }
        let mut all = inputs.iter_mut();
        reader.array(|reader| {
            let mut input = all.next();
            reader.object(|reader, field| match input.as_mut() {
                Some(Input {
                    datatype: Some(datatype),
                    data: place @ None,
                    has_data: true,
                    ..
                }) if field == "data" => {
                    *place = Some(data(reader, *datatype)?);
                    Ok(())
                }
                _ => reader.skip(),
            })
        })
    })
}

fn data(reader: &mut Reader<'_>, datatype: Datatype) -> Read<(Vec<u8>, elements::Nesting)> {
    let mut data = Vec::new();
    let nesting = elements::read(reader, datatype, &mut data)?;
    Ok((data, nesting))
}

fn datatype(reader: &mut Reader<'_>) -> Read<Datatype> {
    let name = reader.string()?;
    Datatype::parse(&name).ok_or_else(|| reader.error("there is no such datatype"))
}

fn shape(reader: &mut Reader<'_>) -> Read<Vec<u64>> {
    let mut shape = Vec::new();
    reader.array(|reader| {
        if shape.len() == MAX_DIMENSIONS {
            return Err(reader.error(format!("a shape has over {MAX_DIMENSIONS} dimensions")));
        }
        let size = reader.number()?.parse();
        shape.push(size.map_err(|_error| reader.error("a dimension must be a size"))?);
        Ok(())
    })?;
    Ok(shape)
}

fn outputs(reader: &mut Reader<'_>) -> Read<Vec<RequestedOutput>> {
    let mut outputs = Vec::new();
    reader.array(|reader| {
        if outputs.len() == MAX_TENSORS {
            return Err(reader.error("there are too many outputs"));
        }
        let (mut name, mut parameters) = (None, None);
        reader.object(|reader, field| match field {
            "name" => once(reader, &mut name, |reader| reader.string().map(Cow::into_owned)),
            "parameters" => once(reader, &mut parameters, self::parameters),
            _ => reader.skip(),
        })?;
        let name = name.ok_or_else(|| reader.error("an output has no name"))?;
        outputs.push(RequestedOutput { name, parameters: parameters.unwrap_or_default() });
        Ok(())
    })?;
    Ok(outputs)
}

/// Read parameters: strings, numbers and booleans; `null` counts as missing.
pub(super) fn parameters(reader: &mut Reader<'_>) -> Read<Parameters> {
    let mut parameters = Parameters::new();
    reader.object(|reader, name| {
        if parameters.len() == MAX_PARAMETERS {
            return Err(reader.error(format!("there are over {MAX_PARAMETERS} parameters")));
        }
        let value = match reader.peek()? {
            b'"' => Parameter::Text(reader.string()?.into_owned()),
            b't' | b'f' => Parameter::Bool(reader.boolean()?),
            b'n' if reader.takes_null()? => return Ok(()),
            _ => number(reader)?,
        };
        match parameters.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(reader.error("a parameter is there twice")),
        }
    })?;
    Ok(parameters)
}

fn number(reader: &mut Reader<'_>) -> Read<Parameter> {
    let number = reader.number()?;
    if let Ok(number) = number.parse() {
        return Ok(Parameter::Int(number));
    }
    if let Ok(number) = number.parse() {
        return Ok(Parameter::Uint(number));
    }
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Parameter::Double(number)),
        _ => Err(reader.error("a number is too large")),
    }
}
