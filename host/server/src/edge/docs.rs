//! `GET /docs`: the documentation page of a listener, which the browser renders from the listener's
//! `/openapi.json` with the key of its user.
//!
//! The page itself contains nothing about the server and needs no key. It is part of the program, loads
//! nothing from elsewhere and may run no script but its own, because models describe themselves and
//! their text is not trusted.

use axum::Router;
use axum::http::HeaderName;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

/// What the page may do: load its own files and send requests to this server. Browsers that support it
/// keep strings from becoming markup or scripts.
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
pub(crate) fn endpoints<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(async move || (headers(kind), content)))
    })
}

/// Another version of the server has other files under the same names, so browsers must revalidate.
fn headers(kind: &'static str) -> [(HeaderName, &'static str); 5] {
    [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ]
}
