//! Cross-origin requests of web pages (CORS), for the origins of the configuration.
//!
//! A browser sends a preflight request before a request that a form could not send, and hides a response
//! from a page unless its headers allow the origin. For an origin that is not allowed, this middleware
//! does nothing: its requests are handled like those of any other client, and need a key. There are no
//! cookies, so there is no `Access-Control-Allow-Credentials`.
//!
//! `CorsLayer` of `tower-http` is not used, because it treats every `OPTIONS` request as a preflight
//! request (here, others reach the router and get 405), sends the allowed methods and headers to origins
//! that are not allowed, and takes its list of headers when it is built, while the sticky headers change
//! when the configuration is reloaded.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::policy::Policy;
use super::state::Edge;
use crate::config::Origins;

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");

/// The request headers that the endpoints read, beside those that every page may send.
const HEADERS: &str = "Authorization, Content-Encoding, Content-Type, Idempotency-Key, Traceparent, Tracestate, \
     X-API-Key, X-Model-Version, X-Request-Id, X-Request-Timeout-Ms";

/// The response headers that a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Idempotency-Replayed, RateLimit, RateLimit-Policy, Retry-After, Traceresponse, X-Model-Version, \
     X-Request-Id, X-Route-Reason",
);

/// How long a browser may cache the response to a preflight request, in seconds. Chromium accepts at most
/// two hours.
const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");

/// [`HEADERS`] and the sticky headers of all models.
fn allowed_headers(policy: &Policy) -> HeaderValue {
    let sticky = policy.sticky.values().filter_map(|sticky| sticky.header.as_deref());
    let all: Vec<_> = std::iter::once(HEADERS).chain(sticky).collect();
    // The configuration allows letters, digits, hyphens and underscores only.
    HeaderValue::try_from(all.join(", ")).unwrap_or(HeaderValue::from_static(HEADERS))
}

/// Respond to preflight requests, and add the headers for the origin to every other response.
pub(super) async fn allow(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let policy = edge.policy.load_full();
    if policy.origins == Origins::None {
        return next.run(request).await;
    }
    let allowed = allow_origin(&policy.origins, request.headers());
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match &allowed {
        Some(_) if is_preflight => {
            let headers = [
                (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (ACCESS_CONTROL_ALLOW_HEADERS, allowed_headers(&policy)),
                (ACCESS_CONTROL_MAX_AGE, MAX_AGE),
            ];
            (StatusCode::NO_CONTENT, headers).into_response()
        }
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    if policy.origins != Origins::Any {
        // A cache must not use the response for another origin.
        headers.append(VARY, HeaderValue::from_name(ORIGIN));
    }
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if !is_preflight {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
    response
}

/// The value of `Access-Control-Allow-Origin`, if the request's origin is allowed.
fn allow_origin(origins: &Origins, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    match origins {
        Origins::None => None,
        Origins::Any => Some(HeaderValue::from_static("*")),
        Origins::Some(origins) => {
            let known = origins.iter().any(|known| known.as_bytes() == origin.as_bytes());
            known.then(|| origin.clone())
        }
    }
}
