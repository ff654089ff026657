//! `grpc.health.v1.Health`: health checks of the server, of its services, and of models.
//!
//! Only models require a key. Without one, they are reported as unknown.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::call::Call;
use super::model_methods;
use super::serving::{Serving, stopped};
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::model_info::{self, InfoRequest};

/// How often watched services are checked: watchers receive a change within this time.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// The most watchers without a key: each of them costs a check four times a second.
const MAX_WATCHERS: usize = 1000;

/// The most watchers with a valid key. They are counted apart, so that watchers without a key cannot exclude
/// them.
const MAX_WATCHERS_WITH_KEY: usize = 1000;

/// The services that do not depend on the models.
const SERVICES: [&str; 5] = [
    "",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The health service.
#[derive(Clone)]
pub(super) struct Checks {
    serving: Serving,
    watchers: Arc<Semaphore>,
    watchers_with_key: Arc<Semaphore>,
}

impl Checks {
    pub(super) fn new(serving: Serving) -> Self {
        let watchers = Arc::new(Semaphore::new(MAX_WATCHERS));
        let watchers_with_key = Arc::new(Semaphore::new(MAX_WATCHERS_WITH_KEY));
        Self { serving, watchers, watchers_with_key }
    }

    /// Admit a watcher.
    fn admit(&self, call: &Call) -> Result<OwnedSemaphorePermit, ApiError> {
        let has_key = call.has_key() && self.serving.edge.authenticate(&call.headers).is_ok();
        let watchers = if has_key { &self.watchers_with_key } else { &self.watchers };
        Arc::clone(watchers)
            .try_acquire_owned()
            .map_err(|_none| ApiError::new(ErrorCode::Overloaded, "there are too many watchers"))
    }
}

fn status(serving: &Serving, call: &Call, service: &str) -> ServingStatus {
    let edge = &*serving.edge;
    let is_ready = if SERVICES.contains(&service) {
        Some(model_info::is_ready(edge))
    } else {
        let model = model_methods::model_of(edge, service);
        let model = model.as_ref().map_or(service, |model| model.as_str());
        // A caller without a key is not counted as a failed authentication.
        let has_key = call.has_key();
        let mut log = call.log();
        let mut info = InfoRequest { edge, headers: &call.headers, log: &mut log };
        has_key.then(|| info.model_is_ready(model, "").ok()).flatten()
    };
    match is_ready {
        Some(true) => ServingStatus::Serving,
        Some(false) => ServingStatus::NotServing,
        None => ServingStatus::ServiceUnknown,
    }
}

#[tonic::async_trait]
impl Health for Checks {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let call = Call::from_extensions(request.extensions())?;
        match status(&self.serving, &call, &request.get_ref().service) {
            ServingStatus::ServiceUnknown => {
                let error = ApiError::new(ErrorCode::NotFound, "there is no such service");
                Err(call.fail(&error))
            }
            known => Ok(Response::new(HealthCheckResponse { status: known.into() })),
        }
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Watch>, Status> {
        let call = Call::from_extensions(request.extensions())?;
        let permit = self.admit(&call).map_err(|error| call.fail(&error))?;
        let mut checks = interval(WATCH_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Response::new(Watch {
            stopped: Box::pin(stopped(self.serving.stopping.clone())),
            serving: self.serving.clone(),
            call,
            service: request.into_inner().service,
            last: None,
            checks,
            is_done: false,
            _permit: permit,
        }))
    }
}

/// The status, and each change of it.
pub(crate) struct Watch {
    serving: Serving,
    call: Arc<Call>,
    service: String,
    last: Option<ServingStatus>,
    checks: Interval,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_done: bool,
    _permit: OwnedSemaphorePermit,
}

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_done {
            return Poll::Ready(None);
        }
        loop {
            let is_stopped = this.stopped.as_mut().poll(context).is_ready();
            let now = status(&this.serving, &this.call, &this.service);
            if this.last != Some(now) {
                this.last = Some(now);
                return Poll::Ready(Some(Ok(HealthCheckResponse { status: now.into() })));
            }
            if is_stopped {
                this.is_done = true;
                return Poll::Ready(Some(Err(this.call.fail(&ApiError::stopping()))));
            }
            ready!(this.checks.poll_tick(context));
        }
    }
}
