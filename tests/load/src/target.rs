//! The endpoint under load, its requests, and which responses are successes.
//!
//! A target is validated when it is created and does not change during a run.

use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use hyper::{Method, Request, StatusCode, Uri};

use crate::LoadError;

/// Which responses are successes.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// The status of a success.
    pub status: StatusCode,
    /// Text that the body of a success contains.
    pub contains: Option<String>,
    /// Statuses that count neither as successes nor as errors, with any body.
    pub tolerated: Vec<StatusCode>,
}

impl Default for Expectation {
    fn default() -> Self {
        Self { status: StatusCode::OK, contains: None, tolerated: Vec::new() }
    }
}

/// An endpoint with its requests.
#[derive(Debug, Clone)]
pub struct Target {
    address: SocketAddr,
    path: Uri,
    headers: HeaderMap,
    bodies: Vec<Bytes>,
    expectation: Expectation,
    is_grpc: bool,
}

impl Target {
    /// Parses the URL of an endpoint. The bodies are sent in turn with `POST` as JSON; without
    /// bodies, the requests are `GET`.
    ///
    /// # Errors
    /// The URL is not of the form `http://ADDRESS:PORT/PATH`, or the address is not a loopback
    /// address.
    pub fn new(url: &str, bodies: Vec<Bytes>) -> Result<Self, LoadError> {
        let malformed = || LoadError::Url(url.to_owned());
        let parsed = url.parse::<Uri>().map_err(|_error| malformed())?;
        if parsed.scheme_str() != Some("http") {
            return Err(malformed());
        }
        // A host name could resolve to another machine.
        let authority = parsed.authority().ok_or_else(malformed)?.as_str();
        let address: SocketAddr = authority.parse().map_err(|_error| malformed())?;
        if !address.ip().is_loopback() {
            return Err(LoadError::NotLoopback(address));
        }
        let path = parsed.path_and_query().map_or("/", |path| path.as_str());
        let path = path.parse().map_err(|_error| malformed())?;

        let host = HeaderValue::from_str(authority).map_err(|_error| malformed())?;
        let mut headers = HeaderMap::from_iter([(HOST, host)]);
        if !bodies.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(Self {
            address,
            path,
            headers,
            bodies,
            expectation: Expectation::default(),
            is_grpc: false,
        })
    }

    /// Sets a header of all requests.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Turns the requests into gRPC calls: the path names the method, the bodies are its messages,
    /// and the trailers decide about success.
    ///
    /// # Errors
    /// A message is too long for gRPC.
    pub fn into_grpc(mut self) -> Result<Self, LoadError> {
        for body in &mut self.bodies {
            let length = u32::try_from(body.len()).map_err(|_error| LoadError::OutOfBounds {
                name: "length of a message",
                value: body.len().to_string(),
                most: u32::MAX.to_string(),
            })?;
            // The prefix of a message: not compressed, and its length.
            *body = [&[0], &length.to_be_bytes()[..], body].concat().into();
        }
        let uri = format!("http://{}{}", self.address, self.path);
        self.path = uri.parse().map_err(|_error| LoadError::Url(uri))?;
        // HTTP/2 has the authority in the URI.
        self.headers.remove(HOST);
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        self.headers.insert(TE, HeaderValue::from_static("trailers"));
        self.is_grpc = true;
        Ok(self)
    }

    /// Sets which responses are successes; by default those of status 200.
    #[must_use]
    pub fn expecting(mut self, expectation: Expectation) -> Self {
        self.expectation = expectation;
        self
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The request of this number, counted from 0.
    pub(crate) fn request(&self, number: usize) -> Request<Full<Bytes>> {
        let body = match self.bodies.len() {
            0 => None,
            count => self.bodies.get(number % count).cloned(),
        };
        let method = match &body {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = method;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    pub(crate) fn is_expected(&self, body: &[u8]) -> bool {
        let Some(wanted) = &self.expectation.contains else {
            return true;
        };
        // `windows` does not accept a length of 0, and every body contains the empty string.
        wanted.is_empty() || body.windows(wanted.len()).any(|part| part == wanted.as_bytes())
    }

    pub(crate) fn is_tolerated(&self, status: StatusCode) -> bool {
        self.expectation.tolerated.contains(&status)
    }

    pub(crate) fn expected_status(&self) -> StatusCode {
        self.expectation.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_must_be_loopback_addresses() {
        for url in ["http://127.0.0.1:80", "http://127.9.9.9:1/a?b", "http://[::1]:80/"] {
            assert!(Target::new(url, Vec::new()).is_ok(), "{url}");
        }
        for url in ["http://192.0.2.1:80/", "http://0.0.0.0:80/", "http://[2001:db8::1]:80/"] {
            let error = Target::new(url, Vec::new()).unwrap_err();
            assert!(matches!(error, LoadError::NotLoopback(_)), "{url}");
        }
        for url in
            ["", "/path", "http://localhost:80/", "https://127.0.0.1:80/", "http://127.0.0.1/"]
        {
            let error = Target::new(url, Vec::new()).unwrap_err();
            assert!(matches!(error, LoadError::Url(_)), "{url}");
        }
    }

    #[test]
    fn bodies_are_sent_in_turn() {
        let bodies = vec![Bytes::from_static(b"a"), Bytes::from_static(b"bb")];
        let target = Target::new("http://127.0.0.1:80/", bodies).unwrap();
        let length = |number| {
            use hyper::body::Body as _;
            target.request(number).body().size_hint().exact()
        };
        assert_eq!([0, 1, 2].map(length), [Some(1), Some(2), Some(1)]);
    }
}
