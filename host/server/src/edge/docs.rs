//! `GET /docs`: a page for people, which the browser makes from `/openapi.json` with the caller's key.
//!
//! The page itself says nothing of what is served and needs no key. It is part of the program, loads
//! nothing from elsewhere, and may run no script but its own: models describe themselves, and what
//! they say is strangers' text.

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderName;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

use super::state::Edge;

/// What the page may do: load its own files, and ask this server. Strings never become markup or
/// scripts, where browsers can see to it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The files of the page: path, type, content.
const FILES: [(&str, &str, &str); 7] = [
    ("/docs", HTML, include_str!("docs/docs.html")),
    ("/docs/docs.css", CSS, include_str!("docs/docs.css")),
    ("/docs/docs.js", JAVASCRIPT, include_str!("docs/docs.js")),
    ("/docs/dom.js", JAVASCRIPT, include_str!("docs/dom.js")),
    ("/docs/icon.svg", SVG, include_str!("docs/icon.svg")),
    ("/docs/request.js", JAVASCRIPT, include_str!("docs/request.js")),
    ("/docs/schema.js", JAVASCRIPT, include_str!("docs/schema.js")),
];

/// The page and its files.
pub(super) fn endpoints() -> Router<Arc<Edge>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(async move || (headers(kind), content)))
    })
}

/// Another version of the server has other files under the same names: they are asked for each time.
fn headers(kind: &'static str) -> [(HeaderName, &'static str); 5] {
    [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ]
}
