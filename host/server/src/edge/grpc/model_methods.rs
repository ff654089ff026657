//! The methods of the gRPC services made from signatures: `guesthouse.toxicity.v1.Toxicity`.
//!
//! A service decodes messages by the signature of the newest release of a class of compatible versions,
//! whose inputs include those of the older ones. The request is routed to any version of the class, which
//! rejects inputs that it does not have.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use guesthouse_control::registry::Snapshot;
use guesthouse_model::ModelName;
use prost_types::FileDescriptorProto;

use super::call::Call;
use super::method::{Method, RequiredKey};
use super::model_stream;
use super::predict::{read_message, unary};
use super::serving::Serving;
use crate::edge::body::RequestBody;
use crate::edge::codec::Multiplicity;
use crate::edge::codec::signature::SignatureCodec;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::model_services::RoutedService;
use crate::edge::pages::ModelScope;
use crate::edge::pipeline::{RequestHead, predict};
use crate::edge::state::Edge;
use crate::typed;

/// A method of every service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MethodName {
    Predict,
    PredictStream,
    BatchPredict,
}

impl MethodName {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "Predict" => Some(Self::Predict),
            "PredictStream" => Some(Self::PredictStream),
            "BatchPredict" => Some(Self::BatchPredict),
            _ => None,
        }
    }

    /// The path for logs and metrics, whose labels must not depend on the models.
    fn pattern(self) -> &'static str {
        match self {
            Self::Predict => "/guesthouse.{model}/Predict",
            Self::PredictStream => "/guesthouse.{model}/PredictStream",
            Self::BatchPredict => "/guesthouse.{model}/BatchPredict",
        }
    }
}

/// A method of a model's service, as the middleware looked it up.
#[derive(Clone)]
pub(super) struct ModelMethod {
    /// The snapshot in which the service was looked up. It decides about the request as well.
    snapshot: Arc<Snapshot>,
    service: String,
    /// None if there is no such service or method.
    found: Option<(Arc<RoutedService>, MethodName)>,
}

impl ModelMethod {
    /// Look up a path, if it may be one of a model's service.
    pub(super) fn find(edge: &Edge, path: &str) -> Option<Self> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        if !service.starts_with("guesthouse.") {
            return None;
        }
        let snapshot = Arc::clone(&edge.registry.snapshot());
        let found = edge.services.find(&snapshot, service).zip(MethodName::parse(method));
        Some(Self { snapshot, service: service.to_owned(), found })
    }

    /// The method for the middleware. It requires a key even if it does not exist, so that callers without a
    /// key do not learn which services exist.
    pub(super) fn method(&self) -> Method {
        let name = self.found.as_ref().map(|(_, name)| *name);
        let pattern = name.map_or("/guesthouse.{model}/{none}", MethodName::pattern);
        let is_stream = name == Some(MethodName::PredictStream);
        Method { path: Arc::from(pattern), required_key: RequiredKey::AnyModel, is_stream }
    }
}

/// Answer a call of a model's method; none if there is no such method.
pub(super) async fn call(serving: &Serving, mut request: Request) -> Option<Response> {
    let edge = &serving.edge;
    let method = request.extensions_mut().remove::<ModelMethod>()?;
    let call = match Call::from_extensions(request.extensions()) {
        Ok(call) => call,
        Err(status) => return Some(status.into_http()),
    };
    let ModelMethod { snapshot, service, found } = method;
    let Some((service, name)) = found else {
        let checked = check_absent(edge, &snapshot, &service, request.headers());
        return checked.err().map(|error| call.fail(&error).into_http());
    };
    let multiplicity = match name {
        MethodName::Predict => Multiplicity::Single,
        MethodName::BatchPredict => Multiplicity::Batch,
        MethodName::PredictStream => {
            return Some(model_stream::predict_stream(serving, &service, call, request).await);
        }
    };
    let policy = edge.policy.load_full();
    let headers = request.headers().clone();
    let predict = async |messages, log: &mut _| {
        let target = Ok((service.model.clone(), service.class.selector()));
        let head = RequestHead { edge, policy: &policy, snapshot, headers: &headers, target };
        let codec = SignatureCodec::new(Arc::clone(&service), multiplicity);
        let body = async {
            let message = read_message(&call, messages).await?;
            let permit = call.take_permit(message.len())?;
            Ok(RequestBody::new(message, Some(permit)))
        };
        predict(head, Ok(codec), body, log).await
    };
    Some(unary(&policy, &call, request, predict).await)
}

/// The model that has the service of this name.
pub(super) fn model_of(edge: &Edge, service: &str) -> Option<ModelName> {
    let snapshot = edge.registry.snapshot();
    edge.services.find(&snapshot, service).map(|service| service.model.clone())
}

/// The file descriptors of the services of all models in the scope.
pub(super) fn file_descriptors(edge: &Edge, scope: &ModelScope) -> Vec<FileDescriptorProto> {
    let index = edge.services.index(&edge.registry.snapshot());
    let services = index.all().filter(|service| scope.has(&service.model));
    services.map(|service| service.service.descriptor().clone()).collect()
}

/// Check that the caller may learn that a service does not exist: its key must be good for a model of which
/// the service could be.
fn check_absent(
    edge: &Edge,
    snapshot: &Snapshot,
    service: &str,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    let caller = edge.authenticate(headers)?;
    let is_of = |model: &ModelName| {
        let inside = service.strip_prefix(&typed::package_root(model));
        inside.is_some_and(|inside| inside.starts_with('.'))
    };
    let mut models = snapshot.models.keys().filter(|model| caller.scopes().predicts(model));
    if caller.scopes().predicts_all() || models.any(is_of) {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Forbidden, "the key has no scope for this"))
}
