//! Services made from the signatures of the models that are served.

use axum::extract::Request;
use axum::response::Response;

use super::Edge;
use super::grpc::{Method, Serving};

/// The method at this path, if a model has one.
pub(super) fn method(_edge: &Edge, _path: &str) -> Option<Method> {
    None
}

/// The answer of such a method; none, if there is none.
pub(super) async fn call(_serving: &Serving, _request: Request) -> Option<Response> {
    None
}
