//! Services made from the signatures of the models that are served: `guesthouse.toxicity.v1.Toxicity`.
//!
//! Messages are read by the signature of the newest release of a class of versions that go on from each
//! other, which has everything that the others have; requests go to whichever of the class the operators'
//! decisions choose. What that version does not know is refused if it is set.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use prost_types::FileDescriptorProto;

use super::call::Call;
use super::method::{Method, Needs};
use super::raw::{read_message, unary};
use super::services::Offered;
use super::serving::Serving;
use super::signature_stream;
use crate::edge::Edge;
use crate::edge::body::RequestBody;
use crate::edge::codec::Multiplicity;
use crate::edge::codec::signature::SignatureCodec;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::pages::Scope;
use crate::edge::pipeline::{RequestHead, predict};
use crate::typed;
use guesthouse_control::registry::Snapshot;
use guesthouse_model::ModelName;

/// What a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
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
    pub(super) fn pattern(self) -> &'static str {
        match self {
            Self::Predict => "/guesthouse.{model}/Predict",
            Self::PredictStream => "/guesthouse.{model}/PredictStream",
            Self::BatchPredict => "/guesthouse.{model}/BatchPredict",
        }
    }
}

/// A method of a model's service, or one that there is not; and the snapshot in which it was looked for.
#[derive(Clone)]
pub(super) struct SignatureMethod {
    snapshot: Arc<Snapshot>,
    service: String,
    found: Option<(Arc<Offered>, Action)>,
}

impl SignatureMethod {
    /// The method at this path, if it could be one of a model.
    pub(super) fn find(edge: &Edge, path: &str) -> Option<Self> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        if !service.starts_with("guesthouse.") {
            return None;
        }
        let snapshot = Arc::clone(&edge.registry.snapshot());
        let found = edge.services.find(&snapshot, service).zip(Action::parse(method));
        Some(Self { snapshot, service: service.to_owned(), found })
    }

    /// What callers need for it. Whoever has no key does not learn whether there is such a method.
    pub(super) fn method(&self) -> Method {
        let action = self.found.as_ref().map(|(_, action)| *action);
        let pattern = action.map_or("/guesthouse.{model}/{none}", Action::pattern);
        let is_stream = action == Some(Action::PredictStream);
        Method { path: Arc::from(pattern), needs: Needs::Key, is_stream }
    }
}

/// The answer of such a method; none, if there is none.
pub(super) async fn call(serving: &Serving, mut request: Request) -> Option<Response> {
    let edge = &serving.edge;
    let method = request.extensions_mut().remove::<SignatureMethod>()?;
    let call = match Call::of(request.extensions()) {
        Ok(call) => call,
        Err(status) => return Some(status.into_http()),
    };
    let SignatureMethod { snapshot, service, found } = method;
    let Some((offered, action)) = found else {
        // There is no such method; or so it is for who may not know whether there is.
        let known = may_know(edge, &snapshot, &service, request.headers());
        return known.err().map(|error| call.fail(&error).into_http());
    };
    let multiplicity = match action {
        Action::Predict => Multiplicity::Single,
        Action::BatchPredict => Multiplicity::Batch,
        Action::PredictStream => {
            return Some(signature_stream::stream(serving, &offered, call, request).await);
        }
    };
    let policy = edge.policy.load_full();
    let headers = request.headers().clone();
    let predict = async |messages, account: &mut _| {
        let target = Ok((offered.model.clone(), offered.class.selector()));
        let head = RequestHead { edge, policy: &policy, snapshot, headers: &headers, target };
        let codec = SignatureCodec::new(Arc::clone(&offered), multiplicity);
        let body = async {
            let message = read_message(&call, messages).await?;
            let permit = call.take_message(message.len())?;
            Ok(RequestBody::new(message, Some(permit)))
        };
        predict(head, Ok(codec), body, account).await
    };
    Some(unary(&policy, &call, request, predict).await)
}

/// The model whose service has this name.
pub(super) fn model_of(edge: &Edge, service: &str) -> Option<ModelName> {
    let snapshot = edge.registry.snapshot();
    edge.services.find(&snapshot, service).map(|offered| offered.model.clone())
}

/// What describes the services of all models in the scope: one file for each.
pub(super) fn files(edge: &Edge, scope: &Scope) -> Vec<FileDescriptorProto> {
    let known = edge.services.known(&edge.registry.snapshot());
    let known = known.all().filter(|offered| scope.has(&offered.model));
    known.map(|offered| offered.service.descriptor().clone()).collect()
}

/// Whether the caller may know that there is no such service: one of a model that it may ask.
fn may_know(
    edge: &Edge,
    snapshot: &Snapshot,
    service: &str,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    let caller = edge.authorize(headers)?;
    let is_of = |model: &ModelName| {
        let inside = service.strip_prefix(&typed::package_root(model));
        inside.is_some_and(|inside| inside.starts_with('.'))
    };
    let mut models = snapshot.models.keys().filter(|model| caller.scopes().predicts(model));
    if caller.scopes().predicts_all() || models.any(is_of) {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Forbidden, "the key is not good for this"))
}
