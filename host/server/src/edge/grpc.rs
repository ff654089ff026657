//! gRPC: the same models, keys, limits and errors as over HTTP, on a listener of its own.
//!
//! What is done around every call is in `around`: its id, its key, its time and its size are seen to
//! before tonic reads a message. Which methods there are, and what they need, says `method`.

mod around;
mod arriving;
mod call;
mod codec;
mod describe;
mod health;
mod inference;
mod leaving;
mod method;
mod pb;
mod reflection;
mod status;
mod stream;
mod tensors;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;

use axum::routing::any;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{v1, v1alpha};

pub(crate) use call::Call;
pub(crate) use codec::Codec;
pub(crate) use method::{Method, Needs};
use pb::grpc_inference_service_server::{self as inference_service, GrpcInferenceServiceServer};

use super::error::{ApiError, ErrorCode};
use super::{Edge, typed};

/// The largest message of those who ask for health or for types: a name, and a host to say it to.
const MAX_QUESTION: usize = 4 << 10;

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
    let inference = GrpcInferenceServiceServer::new(serving.clone())
        .accept_compressed(Gzip)
        .accept_compressed(Deflate)
        .send_compressed(Gzip)
        .send_compressed(Deflate);
    let edge = Arc::clone(&serving.edge);
    let inference = async move |request: Request| {
        // What holds now, also of what a message becomes when it is inflated.
        let most = edge.policy.load().limits.body_bytes;
        let mut inference = inference.clone().max_decoding_message_size(most);
        inference.call(request).await
    };
    let inference_path = format!("/{}/{{*method}}", inference_service::SERVICE_NAME);
    let health = health::Checks::new(serving.clone());
    let health = HealthServer::new(health).max_decoding_message_size(MAX_QUESTION);
    // Clients that compress everything compress these as well.
    let health = health.accept_compressed(Gzip).accept_compressed(Deflate);
    let reflection = v1::server_reflection_server::ServerReflectionServer::new(serving.clone());
    let older = v1alpha::server_reflection_server::ServerReflectionServer::new(serving.clone());
    let reflection = reflection.accept_compressed(Gzip).accept_compressed(Deflate);
    let older = older.accept_compressed(Gzip).accept_compressed(Deflate);
    let routes = Routes::from(Router::new())
        .add_service(health)
        .add_service(reflection.max_decoding_message_size(MAX_QUESTION))
        .add_service(older.max_decoding_message_size(MAX_QUESTION));
    let typed = async move |request: Request| {
        let answer = typed::call(&serving, request).await;
        answer.unwrap_or_else(|| status::refusal(&no_such_method()))
    };
    let routes = routes.into_axum_router().route(&inference_path, any(inference));
    routes.fallback(typed).layer(around)
}

/// What the caller of a method is told that there is not.
fn no_such_method() -> ApiError {
    ApiError::new(ErrorCode::MethodNotAllowed, "there is no such method")
}
