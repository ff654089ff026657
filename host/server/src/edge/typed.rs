//! Services made from the signatures of the models that are served: `guesthouse.toxicity.v1.Toxicity`.
//!
//! Messages are read by the signature of the newest release of a class of versions that go on from each
//! other, which has everything that the others have; requests go to whichever of the class the operators'
//! decisions choose. What that version does not know is refused if it is set.

mod answer;
mod codec;
mod services;
mod stream;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use prost_types::FileDescriptorProto;
use tonic::Status;
use tonic::codec::CompressionEncoding;
use tonic::server::{Grpc, UnaryService};

use self::codec::Raw;
use self::services::Offered;
pub use self::services::Services;
use super::body::Form;
use super::error::{ApiError, ErrorCode};
use super::grpc::{Call, Method, Needs, Serving};
use super::observe::{Account, answered};
use super::pages::{Content, Key, Kind, Scope};
use super::passage::{Asked, Passage};
use super::{Edge, Policy, Shared, catalogue, shadowed};
use crate::typed::{self, CompatibleRange, ModelService};
use guesthouse_model::ModelName;

/// What a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Predict,
    PredictStream,
    BatchPredict,
}

impl Action {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "Predict" => Some(Self::Predict),
            "PredictStream" => Some(Self::PredictStream),
            "BatchPredict" => Some(Self::BatchPredict),
            _ => None,
        }
    }

    /// For logs and metrics, whose words must not grow with what has been served.
    fn pattern(self) -> &'static str {
        match self {
            Self::Predict => "/guesthouse.{model}/Predict",
            Self::PredictStream => "/guesthouse.{model}/PredictStream",
            Self::BatchPredict => "/guesthouse.{model}/BatchPredict",
        }
    }
}

/// Service and method of a path, if it could be one of ours.
fn parse(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    service.starts_with("guesthouse.").then_some((service, method))
}

/// The method at this path, if a model might have one. Whoever has no key is not told whether it has.
pub(super) fn method(edge: &Edge, path: &str) -> Option<Method> {
    let (service, method) = parse(path)?;
    let action = edge.services.find(edge, service).and_then(|_| Action::parse(method));
    let pattern = action.map_or("/guesthouse.{model}/{none}", Action::pattern);
    let is_stream = action == Some(Action::PredictStream);
    Some(Method { path: Arc::from(pattern), needs: Needs::Key, is_stream })
}

/// The answer of such a method; none, if there is none.
pub(super) async fn call(serving: &Serving, request: Request) -> Option<Response> {
    let edge = &serving.edge;
    let (service, method) = parse(request.uri().path())?;
    let found = edge.services.find(edge, service).zip(Action::parse(method));
    let call = match Call::of(request.extensions()) {
        Ok(call) => call,
        Err(status) => return Some(whole(status)),
    };
    let Some((offered, action)) = found else {
        // There is no such method; or so it is for who may not know whether there is.
        let known = may_know(edge, service, request.headers());
        return known.err().map(|error| whole(call.fail(&error)));
    };
    Some(match action {
        Action::Predict => unary(edge, &offered, Form::Single, call, request).await,
        Action::BatchPredict => unary(edge, &offered, Form::Batch, call, request).await,
        Action::PredictStream => stream::stream(serving, &offered, call, request).await,
    })
}

/// The model whose service has this name.
pub(super) fn model_of(edge: &Edge, service: &str) -> Option<ModelName> {
    edge.services.find(edge, service).map(|offered| offered.model.clone())
}

/// What describes the services of all models in the scope: one file for each.
pub(super) fn files(edge: &Edge, scope: &Scope) -> Vec<FileDescriptorProto> {
    let known = edge.services.known(&edge.registry);
    let known = known.all().filter(|offered| scope.has(&offered.model));
    known.map(|offered| offered.service.descriptor().clone()).collect()
}

/// Whether the caller may know that there is no such service: one of a model that it may ask.
fn may_know(edge: &Edge, service: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    let caller = edge.authorize(headers)?;
    let is_of = |model: &ModelName| {
        let inside = service.strip_prefix(&typed::package_root(model));
        inside.is_some_and(|inside| inside.starts_with('.'))
    };
    let snapshot = edge.registry.snapshot();
    let mut models = snapshot.models.keys().filter(|model| caller.scopes().predicts(model));
    if caller.scopes().predicts_all() || models.any(is_of) {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Forbidden, "the key is not good for this"))
}

fn whole(status: Status) -> Response {
    status.into_http()
}

/// Messages as bytes, within the limits on bodies.
fn grpc(policy: &Policy) -> Grpc<Raw> {
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(policy.limits.body_bytes);
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        grpc = grpc.accept_compressed(encoding).send_compressed(encoding);
    }
    grpc.max_encoding_message_size(usize::MAX)
}

impl Offered {
    fn asked<'a>(&self, edge: &'a Edge, policy: &'a Policy, form: Form) -> Asked<'a> {
        let target = Ok((self.model.clone(), self.class.selector()));
        Asked { edge, policy, target, form }
    }
}

/// One message, one answer.
async fn unary(
    edge: &Edge,
    offered: &Offered,
    form: Form,
    call: Arc<Call>,
    request: Request,
) -> Response {
    let policy = edge.policy.load_full();
    let mut work = call.work();
    let asked = offered.asked(edge, &policy, form);
    let begun = Passage::begin(asked, request.headers(), &mut work);
    let knocked = begun.and_then(|passage| passage.knock(&mut work).map(|()| passage));
    let mut passage = match knocked {
        Ok(passage) => passage,
        Err(error) => return whole(call.fail(&error)),
    };
    let comparison = Mutex::new(None);
    let answer = async |request: tonic::Request<Bytes>| {
        let message = request.into_inner();
        let complete = Instant::now();
        let outcome = match call.take_message(message.len()) {
            Ok(_held) => {
                answer::answer(&mut passage, &offered.service, &message, complete, &mut work).await
            }
            Err(error) => Err(error),
        };
        work.end(outcome.map(|answered| {
            *comparison.lock().unwrap_or_else(PoisonError::into_inner) = answered.comparison;
            answered.message
        }))
    };
    let response = grpc(&policy).unary(Once(Some(answer)), request).await;
    let comparison = comparison.into_inner().unwrap_or_else(PoisonError::into_inner);
    shadowed::compare_after(response.map(Body::new), comparison, &edge.shadows)
}

/// A function that answers the one message that there is.
struct Once<F>(Option<F>);

impl<F, A> UnaryService<Bytes> for Once<F>
where
    F: FnOnce(tonic::Request<Bytes>) -> A,
    A: Future<Output = Result<tonic::Response<Vec<u8>>, Status>>,
{
    type Response = Vec<u8>;
    type Future = A;

    fn call(&mut self, request: tonic::Request<Bytes>) -> A {
        let answer = self.0.take().expect("a unary method is called once");
        answer(request)
    }
}

/// `GET /models/{model}/versions/{selector}/proto`
pub(super) async fn proto(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    parts: Parts,
) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let path = (&*model, &*selector);
        let version = catalogue::known_version(&edge, path, &parts.headers, &mut account)?;
        let id = version.id();
        let key = Key::new(Kind::Proto(id.clone()), Scope::only(&id.name), &parts.headers);
        let make = move |_: &Edge, _: &Key| {
            let id = version.id();
            let service = ModelService::new(
                &id.name,
                CompatibleRange::from_version(&id.version),
                version.signature(),
            );
            let content_type = "text/plain; charset=utf-8";
            Ok(Content { content_type, bytes: service.proto().into_bytes() })
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}
