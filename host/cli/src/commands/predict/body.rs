//! The request for a row: its path, and its body as JSON or, with files, as a form.

use std::fmt::Write as _;

use anyhow::bail;
use guesthouse_runtime::clock;
use serde_json::{Map, Value};

use super::PredictArguments;
use super::rows::{self, Row};
use crate::commands::exit_code::Failure;

/// The path and query of the endpoint.
pub(super) fn path(arguments: &PredictArguments) -> String {
    match (&arguments.model, &arguments.version) {
        (Some(model), Some(version)) => {
            format!("/models/{model}/versions/{}/predict", encode(&version.0))
        }
        (Some(model), None) => format!("/models/{model}/predict"),
        // The default model's version is chosen by a header.
        (None, _) => "/predict".to_owned(),
    }
}

/// The header that chooses a version of the default model.
pub(super) fn version_header(arguments: &PredictArguments) -> Option<&str> {
    let version = arguments.version.as_ref()?;
    arguments.model.is_none().then_some(version.0.as_str())
}

/// Encode a selector for a path: of its characters only letters, digits and some others may be in one.
fn encode(selector: &str) -> String {
    selector.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes it");
        }
        encoded
    })
}

/// The other inputs of a form, as the parts of a server's form are: texts as they are, anything else as
/// JSON.
pub(super) fn parts(values: &Map<String, Value>) -> anyhow::Result<Vec<(&str, String)>> {
    let part = |(name, value): (&'_ String, &Value)| match value {
        Value::Null => {
            bail!(Failure::Usage(format!("`{name}` is null: leave it out to have its default")))
        }
        Value::String(text) => Ok(text.clone()),
        other => Ok(other.to_string()),
    };
    values.iter().map(|entry| Ok((entry.0.as_str(), part(entry)?))).collect()
}

/// The content type and the bytes of a body.
pub(super) fn body(row: &Row) -> anyhow::Result<(String, Vec<u8>)> {
    if row.files.is_empty() {
        return Ok(("application/json".to_owned(), serde_json::to_vec(&row.values)?));
    }
    let boundary = clock::new_id().to_string();
    let mut body = Vec::new();
    let mut part = |name: &str, more: &str, bytes: &[u8]| {
        let name = name.replace(['"', '\r', '\n'], "_");
        body.extend_from_slice(
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n"
            )
            .as_bytes(),
        );
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    };
    for (name, value) in parts(&row.values)? {
        part(name, "", value.as_bytes());
    }
    for file in &row.files {
        part(&file.input, "; filename=\"file\"", &rows::read(&file.path)?);
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    Ok((format!("multipart/form-data; boundary={boundary}"), body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_encoded_for_a_path() {
        assert_eq!(encode("^1.2"), "%5E1.2");
        assert_eq!(encode(">=1.2, <3"), "%3E%3D1.2%2C%20%3C3");
        assert_eq!(encode("1.0.0-rc.1+b/é"), "1.0.0-rc.1%2Bb%2F%C3%A9");
    }
}
