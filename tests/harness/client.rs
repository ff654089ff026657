//! A client of a server under test: a published HTTP library, and a bare socket for what such a
//! library would not send.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// The key of the demo mode.
pub const DEMO_KEY: &str = "local-demo-key";

/// The key of the demo mode for the admin API.
pub const DEMO_ADMIN_KEY: &str = "local-demo-admin-key";

/// The longest any answer may take: a hang is a failure, not a wait.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, which is JSON in every case.
    pub body: Value,
}

impl Answer {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The `error_code` of the body; nothing for an answer that is no error.
    pub fn error_code(&self) -> Option<&str> {
        self.body["error_code"].as_str()
    }
}

/// Send the head of a request with the demo key, whose body waits until it is asked for; the status of
/// what comes first.
pub(crate) fn announce(address: SocketAddr, path: &str, length: usize) -> u16 {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {DEMO_KEY}\r\nExpect: 100-continue\r\n\
         Connection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("the server reads the head");
    let mut line = [0; "HTTP/1.1 100".len()];
    stream.read_exact(&mut line).expect("the server answers");
    let status = str::from_utf8(&line[9..]).ok().and_then(|status| status.parse().ok());
    status.expect("an answer begins with its status")
}

/// Send a request by a published library.
///
/// # Panics
/// There is no answer, or it is not JSON.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body.to_vec()).expect("the test builds a whole request");
    let mut response = agent().run(request).expect("the server answers");
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
    Answer { status, headers, body }
}

/// A client for what the one above cannot do: HTTP/2, TLS, forms.
pub fn http() -> reqwest::blocking::ClientBuilder {
    // Somebody else may have been faster, with the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::blocking::Client::builder().timeout(TIMEOUT)
}

/// The status of the answer to such a request; none, if the server ends before there is one.
pub fn try_send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<u16> {
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = agent().run(request.body(body.to_vec()).ok()?).ok()?;
    Some(response.status().as_u16())
}

/// A page that is no JSON, and its content type.
///
/// # Panics
/// There is no such page.
pub fn page(url: &str) -> (String, String) {
    let mut response = agent().get(url).call().expect("the server answers");
    assert_eq!(response.status().as_u16(), 200, "{url}");
    let content_type = response.headers().get("content-type").expect("a page has a type");
    let content_type = content_type.to_str().expect("a type is a text").to_owned();
    (response.body_mut().read_to_string().expect("the body is text"), content_type)
}

fn agent() -> ureq::Agent {
    let configuration =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
    configuration.build().into()
}

/// Send bytes as they are; everything that comes back until the server closes the connection.
///
/// # Panics
/// The connection breaks before there was an answer.
pub fn send_raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout can be set");
    stream.write_all(request).expect("the server reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server answers");
    String::from_utf8_lossy(&answer).into_owned()
}
