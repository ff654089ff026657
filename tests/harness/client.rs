//! HTTP clients for a server under test: a published library, and a plain socket for requests that
//! such a library refuses to send.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::DEADLINE;

/// The API key of the demo mode.
pub const DEMO_KEY: &str = "local-demo-key";

/// The admin API key of the demo mode.
pub const DEMO_ADMIN_KEY: &str = "local-demo-admin-key";

/// An HTTP response with a JSON body.
#[derive(Debug)]
pub struct HttpResponse {
    /// The HTTP status.
    pub status: u16,
    /// The headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body parsed as JSON; null if it is empty.
    pub body: Value,
}

impl HttpResponse {
    /// The value of a header, if the response has it.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The `error_code` field of the body, if the response is an error.
    pub fn error_code(&self) -> Option<&str> {
        self.body["error_code"].as_str()
    }
}

/// Sends the head of a request with the demo key and `Expect: 100-continue`, and returns the status
/// of the first response. The body is never sent.
pub(crate) fn announce(address: SocketAddr, path: &str, length: usize) -> u16 {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {DEMO_KEY}\r\nExpect: 100-continue\r\n\
         Connection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("the server reads the head");
    let mut line = [0; "HTTP/1.1 100".len()];
    stream.read_exact(&mut line).expect("the server responds");
    let status = str::from_utf8(&line[9..]).ok().and_then(|status| status.parse().ok());
    status.expect("a response starts with a status line")
}

/// Sends a request and returns the response.
///
/// # Panics
/// No response arrives, or its body is not JSON.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpResponse {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.to_vec()).expect("the request is valid");
    let mut response = agent().run(request).expect("the server responds");
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    let status = response.status().as_u16();
    let body = response.body_mut().read_to_string().expect("the body is text");
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&body).unwrap_or_else(|_| panic!("not JSON: {body}"))
    };
    HttpResponse { status, headers, body }
}

/// A builder of clients for what [`send`] does not support: HTTP/2, TLS and multipart forms.
pub fn http() -> reqwest::blocking::ClientBuilder {
    // Another thread may have installed the same provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::blocking::Client::builder().timeout(DEADLINE)
}

/// Sends a request and returns the status of the response; none if the connection fails first, for
/// example because the server has exited.
pub fn try_send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<u16> {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = agent().run(request.body(body.to_vec()).ok()?).ok()?;
    Some(response.status().as_u16())
}

/// Gets a page whose body is not JSON; returns the body and the content type.
///
/// # Panics
/// The status is not 200.
pub fn page(url: &str) -> (String, String) {
    let mut response = agent().get(url).call().expect("the server responds");
    assert_eq!(response.status().as_u16(), 200, "{url}");
    let content_type = response.headers().get("content-type").expect("a page has a content type");
    let content_type = content_type.to_str().expect("a content type is ASCII").to_owned();
    (response.body_mut().read_to_string().expect("the body is text"), content_type)
}

fn agent() -> ureq::Agent {
    let configuration =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(DEADLINE));
    configuration.build().into()
}

/// Sends bytes as they are and returns everything that the server sends until it closes the
/// connection.
///
/// # Panics
/// The connection is reset before a response arrives.
pub fn send_raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
    stream.write_all(request).expect("the server reads");
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("the server responds");
    String::from_utf8_lossy(&response).into_owned()
}
