//! An HTTP client for single requests.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use ureq::http::{Request, Response};
use ureq::{Agent, Body};

/// The time limit of a request. The longest long poll takes thirty seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long an idle connection is reused, which is shorter than the server keeps it.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// The limit of a response body.
const MAX_RESPONSE_BYTES: u64 = 128 << 20;

/// A client with an API key.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    address: SocketAddr,
    key: &'static str,
}

/// A response.
pub(super) struct TextResponse {
    pub(super) status: u16,
    /// The version of the model that answered, if any.
    pub(super) version: Option<String>,
    pub(super) text: String,
}

impl Client {
    pub(super) fn new(address: SocketAddr, key: &'static str) -> Self {
        let configuration = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .max_idle_age(IDLE_LIMIT);
        Self { agent: configuration.build().into(), address, key }
    }

    pub(super) fn get(&self, path: &str) -> Result<TextResponse> {
        self.send("GET", path, &[], Vec::new())
    }

    /// Posts a body, as JSON unless a header says otherwise.
    pub(super) fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<TextResponse> {
        self.send("POST", path, headers, body)
    }

    /// Posts a body and returns the status and the bytes of the response.
    pub(super) fn post_for_bytes(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<(u16, Vec<u8>)> {
        let mut response = self.respond("POST", path, headers, body)?;
        let reader = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES);
        let bytes = reader.read_to_vec();
        let bytes = bytes.with_context(|| format!("incomplete response to POST {path}"))?;
        Ok((response.status().as_u16(), bytes))
    }

    pub(super) fn delete(&self, path: &str) -> Result<TextResponse> {
        self.send("DELETE", path, &[], Vec::new())
    }

    /// Reads a response without storing it, so that only the server's time is measured if responses
    /// have megabytes. Returns the status.
    pub(super) fn drain(&self, method: &str, path: &str) -> Result<u16> {
        let mut response = self.respond(method, path, &[], Vec::new())?;
        let mut body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).reader();
        io::copy(&mut body, &mut io::sink())
            .with_context(|| format!("incomplete response to {method} {path}"))?;
        Ok(response.status().as_u16())
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<TextResponse> {
        let mut response = self.respond(method, path, headers, body)?;
        let version = response.headers().get("x-model-version");
        Ok(TextResponse {
            status: response.status().as_u16(),
            version: version.and_then(|version| version.to_str().ok()).map(str::to_owned),
            text: response
                .body_mut()
                .with_config()
                .limit(MAX_RESPONSE_BYTES)
                .read_to_string()
                .with_context(|| format!("incomplete response to {method} {path}"))?,
        })
    }

    fn respond(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Response<Body>> {
        let url = format!("http://{}{path}", self.address);
        let mut request = Request::builder().method(method).uri(url).header("x-api-key", self.key);
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).context("a request is invalid")?;
        self.agent.run(request).with_context(|| format!("no response to {method} {path}"))
    }
}

impl TextResponse {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("not JSON: {}", self.text))
    }
}
