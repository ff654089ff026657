//! gRPC: the same models, keys, limits and errors as over HTTP, on a listener of its own.
//!
//! What is done around every call is in `around`: its id, its key, its time and its size are seen to
//! before tonic reads a message. Which methods there are, and what they need, says `method`.

mod around;
mod arriving;
mod call;
mod leaving;
mod method;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use tokio::sync::watch;
use tonic::service::Routes;

use super::error::{ApiError, ErrorCode};
use super::{Edge, typed};
pub(crate) use call::Call;
pub(crate) use method::{Method, Needs};

/// What every method needs.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) edge: Arc<Edge>,
    /// Says when calls that have no end of their own have to come to one.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Every method.
pub fn endpoints(edge: Arc<Edge>, stopping: watch::Receiver<bool>) -> Router {
    let serving = Serving { edge, stopping };
    let around = axum::middleware::from_fn_with_state(serving.clone(), around::each_call);
    let typed =
        async move |request: Request| typed::call(&serving, request).await.unwrap_or_else(unknown);
    Routes::from(Router::new()).into_axum_router().fallback(typed).layer(around)
}

/// What the caller of a method is told that there is not.
fn unknown() -> Response {
    let error = ApiError::new(ErrorCode::MethodNotAllowed, "there is no such method");
    status::refusal(&error)
}
