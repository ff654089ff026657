//! The gRPC API: the same models, keys, limits and errors as over HTTP, on a listener of its own.
//!
//! The middleware checks a call's key, deadline and size before tonic reads a message. [`method`] lists the
//! methods that do not depend on models; [`model_methods`] has the others.

mod call;
mod health;
mod message_permits;
mod method;
mod middleware;
mod model_messages;
mod model_methods;
mod model_stream;
mod oip_predict;
mod oip_service;
mod oip_stream;
mod predict;
mod reflection;
mod request_body;
mod response_body;
mod serving;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{v1, v1alpha};

use super::pb::grpc_inference_service_server::{
    self as inference_service, GrpcInferenceServiceServer,
};

use self::serving::Serving;
use super::error::ApiError;
use super::state::Edge;

/// The largest message to the health and reflection services, in bytes: it has a name and a host.
const MAX_SMALL_MESSAGE: usize = 4 << 10;

/// The router of all methods.
pub fn endpoints(edge: Arc<Edge>, stopping: watch::Receiver<bool>) -> Router {
    let serving = Serving { edge, stopping };
    let middleware = axum::middleware::from_fn_with_state(serving.clone(), middleware::handle);
    let inference = GrpcInferenceServiceServer::new(serving.clone())
        .accept_compressed(Gzip)
        .accept_compressed(Deflate)
        .send_compressed(Gzip)
        .send_compressed(Deflate);
    let shared = serving.clone();
    let inference = async move |request: Request| match request.uri().path() {
        oip_predict::MODEL_INFER => oip_predict::model_infer(&shared, request).await,
        oip_predict::MODEL_STREAM_INFER => oip_stream::model_stream_infer(&shared, request).await,
        _ => {
            // The limit may have been reloaded. It applies to decompressed messages.
            let most = shared.edge.policy.load().limits.body_bytes;
            let mut inference = inference.clone().max_decoding_message_size(most);
            match inference.call(request).await {
                Ok(response) => response.map(Body::new),
                Err(never) => match never {},
            }
        }
    };
    let inference_path = format!("/{}/{{*method}}", inference_service::SERVICE_NAME);
    let health = health::Checks::new(serving.clone());
    let health = HealthServer::new(health).max_decoding_message_size(MAX_SMALL_MESSAGE);
    // Some clients compress every message.
    let health = health.accept_compressed(Gzip).accept_compressed(Deflate);
    let reflection = v1::server_reflection_server::ServerReflectionServer::new(serving.clone());
    let older = v1alpha::server_reflection_server::ServerReflectionServer::new(serving.clone());
    let reflection = reflection.accept_compressed(Gzip).accept_compressed(Deflate);
    let older = older.accept_compressed(Gzip).accept_compressed(Deflate);
    let routes = Routes::from(Router::new())
        .add_service(health)
        .add_service(reflection.max_decoding_message_size(MAX_SMALL_MESSAGE))
        .add_service(older.max_decoding_message_size(MAX_SMALL_MESSAGE));
    let of_models = async move |request: Request| {
        let answer = model_methods::call(&serving, request).await;
        answer.unwrap_or_else(|| status::rejection(&ApiError::no_such_method()))
    };
    let routes = routes.into_axum_router().route(&inference_path, any(inference));
    routes.fallback(of_models).layer(middleware)
}
