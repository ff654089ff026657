//! Web pages of other origins: which ones may ask, where the operator says so.
//!
//! A browser asks before it sends what a form could not send, and lets a page see an answer only if
//! it is told so. An origin that is not allowed is told nothing at all, and its requests, which are
//! those of a page that somebody visits, get what every other caller gets: a key is needed. There are
//! no cookies, so nothing is said of credentials.

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

/// What the endpoints read of a request, beside what every page may send.
const HEADERS: &str = "Authorization, Content-Encoding, Content-Type, Idempotency-Key, Traceparent, Tracestate, \
     X-API-Key, X-Model-Version, X-Request-Id, X-Request-Timeout-Ms";

/// What a page may read of an answer, beside its body.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Idempotency-Replayed, RateLimit, RateLimit-Policy, Retry-After, Traceresponse, X-Model-Version, \
     X-Request-Id, X-Route-Reason",
);

/// How long a browser remembers the answer, in seconds: an hour, and what Chromium takes at most are
/// two.
const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");

/// The same with those that tell callers apart.
fn headers_of(policy: &Policy) -> HeaderValue {
    let sticky = policy.sticky.values().filter_map(|sticky| sticky.header.as_deref());
    let all: Vec<_> = std::iter::once(HEADERS).chain(sticky).collect();
    // The configuration takes letters, digits, hyphens and underscores.
    HeaderValue::try_from(all.join(", ")).unwrap_or(HeaderValue::from_static(HEADERS))
}

/// Answer browsers that ask whether they may, and tell them so with every answer.
pub(super) async fn allow(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let policy = edge.policy.load_full();
    if policy.origins == Origins::None {
        return next.run(request).await;
    }
    let allowed = allowed(&policy.origins, request.headers());
    let asks_first = request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match &allowed {
        Some(_) if asks_first => {
            let headers = [
                (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
                (ACCESS_CONTROL_ALLOW_HEADERS, headers_of(&policy)),
                (ACCESS_CONTROL_MAX_AGE, MAX_AGE),
            ];
            (StatusCode::NO_CONTENT, headers).into_response()
        }
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    if policy.origins != Origins::Any {
        // What is kept for one origin is not for another.
        headers.append(VARY, HeaderValue::from_name(ORIGIN));
    }
    if let Some(origin) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if !asks_first {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
    response
}

/// What an allowed origin is told, if it is one.
fn allowed(origins: &Origins, headers: &HeaderMap) -> Option<HeaderValue> {
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
