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
mod oip;
pub(in crate::edge) mod pb;
mod raw;
mod reflection;
pub(in crate::edge) mod services;
mod serving;
mod signature;
mod signature_stream;
mod status;
mod stream;

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

pub(crate) use codec::Codec;
use pb::grpc_inference_service_server::{self as inference_service, GrpcInferenceServiceServer};

use self::serving::Serving;
use super::Edge;
use super::error::ApiError;

/// The largest message of those who ask for health or for types: a name, and a host to say it to.
const MAX_QUESTION: usize = 4 << 10;

/// Every method.
pub fn endpoints(edge: Arc<Edge>, stopping: watch::Receiver<bool>) -> Router {
    let serving = Serving { edge, stopping };
    let around = axum::middleware::from_fn_with_state(serving.clone(), around::each_call);
    let inference = GrpcInferenceServiceServer::new(serving.clone())
        .accept_compressed(Gzip)
        .accept_compressed(Deflate)
        .send_compressed(Gzip)
        .send_compressed(Deflate);
    let shared = serving.clone();
    let inference = async move |request: Request| match request.uri().path() {
        oip::MODEL_INFER => oip::model_infer(&shared, request).await,
        oip::MODEL_STREAM_INFER => stream::model_stream_infer(&shared, request).await,
        _ => {
            // What holds now, also of what a message becomes when it is inflated.
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
    let of_models = async move |request: Request| {
        let answer = signature::call(&serving, request).await;
        answer.unwrap_or_else(|| status::refusal(&ApiError::no_such_method()))
    };
    let routes = routes.into_axum_router().route(&inference_path, any(inference));
    routes.fallback(of_models).layer(around)
}
