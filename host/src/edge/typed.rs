//! Services made from the signatures of the models that are served.

use axum::extract::Request;
use axum::response::Response;

use prost_types::FileDescriptorProto;

use super::Edge;
use super::grpc::{Method, Serving};
use crate::keys::Caller;
use crate::model::ModelName;

/// The method at this path, if a model has one.
pub(super) fn method(_edge: &Edge, _path: &str) -> Option<Method> {
    None
}

/// The answer of such a method; none, if there is none.
pub(super) async fn call(_serving: &Serving, _request: Request) -> Option<Response> {
    None
}

/// The model whose service has this name.
pub(super) fn model_of(_edge: &Edge, _service: &str) -> Option<ModelName> {
    None
}

/// What describes the services of all models that the caller may ask: one file for each.
pub(super) fn files(_edge: &Edge, _caller: &Caller) -> Vec<FileDescriptorProto> {
    Vec::new()
}
