//! Compression of HTTP responses.

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::header::ACCEPT_ENCODING;
use axum::http::{HeaderValue, Response};
use tower_http::compression::predicate::{Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};

use super::oip_path;

/// The smallest response that is compressed, in bytes: a smaller one is one packet anyway.
const MIN_BYTES: u64 = 1 << 10;

/// Marks a response that is not compressed, whatever its caller accepts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uncompressed;

/// Which responses are compressed.
#[derive(Debug, Clone, Copy)]
pub(super) struct IsCompressed(SizeAbove);

impl Predicate for IsCompressed {
    fn should_compress<B: HttpBody>(&self, response: &Response<B>) -> bool {
        response.extensions().get::<Uncompressed>().is_none() && self.0.should_compress(response)
    }
}

/// Compresses responses, fast rather than well: the processors that compress them serve requests as well.
pub(super) fn layer() -> CompressionLayer<IsCompressed> {
    let layer = CompressionLayer::new().quality(CompressionLevel::Fastest);
    layer.compress_when(IsCompressed(SizeAbove::new(MIN_BYTES)))
}

/// Restrict the encodings that a request accepts. Clients of the Open Inference Protocol send what their
/// HTTP library supports, and decode by themselves what the protocol has: gzip and deflate.
///
/// The library would respond 406 to a caller that refuses uncompressed responses, after the work was
/// done. Such a caller gets an uncompressed response instead.
pub(super) async fn restrict_accepted(mut request: Request) -> Request {
    let refuses = |value: &str| {
        value.split(',').any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let weight = weight.split_once('=').and_then(|(_, weight)| weight.trim().parse().ok());
            ["identity", "*"].contains(&name.trim().to_ascii_lowercase().as_str())
                && weight == Some(0.0_f32)
        })
    };
    let mut values = request.headers().get_all(ACCEPT_ENCODING).iter();
    if values.any(|value| value.to_str().is_ok_and(refuses)) {
        request.headers_mut().remove(ACCEPT_ENCODING);
    }
    if oip_path::is_oip(request.uri().path()) {
        let values = request.headers().get_all(ACCEPT_ENCODING).iter();
        let all: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
        let is_known = |coding: &&str| {
            let name = coding.split(';').next().unwrap_or_default().trim();
            ["gzip", "deflate"].iter().any(|known| name.eq_ignore_ascii_case(known))
        };
        let all = all.join(",");
        let known: Vec<_> = all.split(',').filter(is_known).collect();
        match HeaderValue::from_str(&known.join(",")) {
            Ok(value) => request.headers_mut().insert(ACCEPT_ENCODING, value),
            Err(_) => request.headers_mut().remove(ACCEPT_ENCODING),
        };
    }
    request
}
