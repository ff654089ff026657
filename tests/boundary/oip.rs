mod infer;
mod invalid_requests;
mod models;
mod repository;

use guesthouse_tests::{DEMO_KEY, Server, client};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// The header with the length of the JSON in a body.
const LENGTH: &str = "Inference-Header-Content-Length";

/// An HTTP response.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The JSON part of the body.
    fn json(&self) -> Value {
        let length = self.header(LENGTH).map_or(self.body.len(), |length| length.parse().unwrap());
        serde_json::from_slice(&self.body[..length])
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The status and the error code of an error in the protocol's form.
    fn refusal(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert!(body["error"].is_string() && body["request_id"].is_string(), "{body}");
        assert!(body["message"].is_null() && body["outputs"].is_null(), "{body}");
        (self.status, body["error_code"].as_str().unwrap().to_owned())
    }

    /// The bytes of an output in raw form.
    fn raw(&self, name: &str) -> Vec<u8> {
        let (json, length) = (self.json(), self.header(LENGTH).unwrap().parse::<usize>().unwrap());
        let mut rest = &self.body[length..];
        for output in json["outputs"].as_array().unwrap() {
            let Some(size) = output["parameters"]["binary_data_size"].as_u64() else { continue };
            let (own, others) = rest.split_at(usize::try_from(size).unwrap());
            if output["name"] == name {
                assert!(output["data"].is_null());
                return own.to_vec();
            }
            rest = others;
        }
        panic!("{name} is not in {json}");
    }
}

fn send(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Reply {
    let http = client::http().no_gzip().no_zstd().build().unwrap();
    let mut request = http.request(method, server.url(path)).body(body);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-api-key")) {
        request = request.header("X-API-Key", DEMO_KEY);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Reply { status, headers, body: response.bytes().unwrap().to_vec() }
}

fn get(server: &Server, path: &str) -> Reply {
    send(server, Method::GET, path, &[], Vec::new())
}

fn post(server: &Server, path: &str, body: &Value) -> Reply {
    let json = [("Content-Type", "application/json")];
    send(server, Method::POST, path, &json, body.to_string().into_bytes())
}

/// Posts JSON followed by raw tensors.
fn post_raw(server: &Server, path: &str, json: &Value, tensors: &[u8]) -> Reply {
    let json = json.to_string();
    let length = json.len().to_string();
    post_with_length(server, path, &length, &[json.as_bytes(), tensors].concat())
}

fn post_with_length(server: &Server, path: &str, length: &str, body: &[u8]) -> Reply {
    let headers = [(LENGTH, length), ("Content-Type", "application/octet-stream")];
    send(server, Method::POST, path, &headers, body.to_vec())
}

/// A byte string in the raw form of tensors.
fn element(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}
