//! Encoding of responses: JSON, and after it the outputs in binary form.

use super::elements::{self, NoJson};
use super::request::flag;
use crate::edge::codec::tensors::RequestedOutput;
use crate::edge::error::ApiError;
use guesthouse_model::{Signature, Tensor, VersionId};

/// The forms of the outputs: JSON or binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutputForms {
    /// Whether outputs are binary by default.
    binary: bool,
    /// Whether each requested output is binary, in their order; empty if all outputs are returned.
    outputs: Vec<bool>,
}

impl OutputForms {
    /// The forms that a request asks for.
    pub(super) fn new(binary: bool, outputs: &[RequestedOutput]) -> Result<Self, ApiError> {
        let form = |output: &RequestedOutput| match output.parameters.contains_key("binary_data") {
            true => flag(&output.parameters, "binary_data"),
            false => Ok(binary),
        };
        let outputs = outputs.iter().map(form).collect::<Result<_, _>>()?;
        Ok(Self { binary, outputs })
    }

    /// Whether an output is binary, by its place in the response.
    fn is_binary(&self, place: usize) -> bool {
        self.outputs.get(place).copied().unwrap_or(self.binary)
    }

    /// Reject a request before it runs, if an output would have to be in JSON that has no form there.
    pub(super) fn check(
        &self,
        signature: &Signature,
        wanted: &[RequestedOutput],
    ) -> Result<(), ApiError> {
        let all = signature.outputs.iter();
        let no_json = |name: &str| {
            let field = all.clone().find(|field| field.name == name);
            field.filter(|field| !elements::has_json(field.datatype))
        };
        let mut names: Vec<_> = wanted
            .iter()
            .map(|output| (output.name.as_str(), output.parameters.contains_key("classification")))
            .collect();
        if wanted.is_empty() {
            names = all.clone().map(|field| (field.name.as_str(), false)).collect();
        }
        for (place, (name, is_classified)) in names.into_iter().enumerate() {
            if let Some(field) = no_json(name).filter(|_| !is_classified && !self.is_binary(place))
            {
                let why = NoJson("its datatype has no form in JSON");
                return Err(ask_for_binary(&field.name, &why));
            }
        }
        Ok(())
    }
}

fn ask_for_binary(name: &str, NoJson(why): &NoJson) -> ApiError {
    let message =
        format!("output `{name}` cannot be answered in JSON ({why}): ask for binary_data");
    ApiError::malformed(message)
}

/// The body of a response; `json_length` is the length of its JSON, if tensors follow.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) json_length: Option<usize>,
}

/// Encode a response.
pub(super) fn write(
    version: &VersionId,
    id: Option<&str>,
    outputs: &[Tensor],
    forms: &OutputForms,
) -> Result<Body, ApiError> {
    let mut json = Vec::with_capacity(256);
    json.extend(b"{\"model_name\":");
    elements::string(&mut json, version.name.as_str());
    json.extend(b",\"model_version\":");
    elements::string(&mut json, &version.version.to_string());
    if let Some(id) = id {
        json.extend(b",\"id\":");
        elements::string(&mut json, id);
    }
    json.extend(b",\"outputs\":[");
    for (place, output) in outputs.iter().enumerate() {
        if place > 0 {
            json.push(b',');
        }
        json.extend(b"{\"name\":");
        elements::string(&mut json, &output.name);
        let (datatype, shape) = (output.datatype.as_str(), &output.shape);
        json.extend(format!(",\"datatype\":\"{datatype}\",\"shape\":{shape:?}").as_bytes());
        if forms.is_binary(place) {
            let size = output.data.len();
            json.extend(format!(",\"parameters\":{{\"binary_data_size\":{size}}}}}").as_bytes());
        } else {
            json.extend(b",\"data\":");
            elements::write(output, &mut json).map_err(|why| ask_for_binary(&output.name, &why))?;
            json.push(b'}');
        }
    }
    json.extend(b"]}");
    let binary = || outputs.iter().enumerate().filter(|(place, _)| forms.is_binary(*place));
    if binary().next().is_none() {
        return Ok(Body { bytes: json, json_length: None });
    }
    let json_length = Some(json.len());
    json.reserve_exact(binary().map(|(_, output)| output.data.len()).sum());
    binary().for_each(|(_, output)| json.extend_from_slice(&output.data));
    Ok(Body { bytes: json, json_length })
}
