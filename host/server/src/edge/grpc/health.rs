//! `grpc.health.v1.Health`: what balancers ask, of the server as a whole, of its services, and of models.
//!
//! Needs no key, but for models: who has none is told that there are none.

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
use super::serving::{Serving, stopped};
use super::signature;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::model_info::{self as about, Asker};

/// How often those that watch are told of a change: as soon as anybody could act on it.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Those that watch at the same time without a key: each of them costs a look four times a second.
const MAX_WATCHING: usize = 1000;

/// Those that watch at the same time with a good key, who are not refused because of others without one.
const MAX_WATCHING_WITH_KEY: usize = 1000;

/// Services that are there as long as the server is.
const SERVICES: [&str; 5] = [
    "",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// What answers.
#[derive(Clone)]
pub(super) struct Checks {
    serving: Serving,
    watching: Arc<Semaphore>,
    watching_with_key: Arc<Semaphore>,
}

impl Checks {
    pub(super) fn new(serving: Serving) -> Self {
        let watching = Arc::new(Semaphore::new(MAX_WATCHING));
        let watching_with_key = Arc::new(Semaphore::new(MAX_WATCHING_WITH_KEY));
        Self { serving, watching, watching_with_key }
    }

    /// The right to watch, if there is room.
    fn admit(&self, call: &Call) -> Result<OwnedSemaphorePermit, ApiError> {
        let has_key = call.has_key() && self.serving.edge.authorize(&call.headers).is_ok();
        let watching = if has_key { &self.watching_with_key } else { &self.watching };
        Arc::clone(watching)
            .try_acquire_owned()
            .map_err(|_none| ApiError::new(ErrorCode::Overloaded, "too many watch"))
    }
}

fn status(serving: &Serving, call: &Call, service: &str) -> ServingStatus {
    let edge = &*serving.edge;
    let is_ready = if SERVICES.contains(&service) {
        Some(about::is_ready(edge))
    } else {
        let model = signature::model_of(edge, service);
        let model = model.as_ref().map_or(service, |model| model.as_str());
        // Nobody who has no key is counted as one who has tried one.
        let may_ask = call.has_key();
        let mut account = call.account();
        let mut asker = Asker { edge, headers: &call.headers, account: &mut account };
        may_ask.then(|| asker.model_is_ready(model, "").ok()).flatten()
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
        let call = Call::of(request.extensions())?;
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
        let call = Call::of(request.extensions())?;
        let watching = self.admit(&call).map_err(|error| call.fail(&error))?;
        let mut looks = interval(WATCH_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Response::new(Watch {
            stopped: Box::pin(stopped(self.serving.stopping.clone())),
            serving: self.serving.clone(),
            call,
            service: request.into_inner().service,
            last: None,
            looks,
            is_over: false,
            _watching: watching,
        }))
    }
}

/// The status now, and each other one from then on.
pub(crate) struct Watch {
    serving: Serving,
    call: Arc<Call>,
    service: String,
    last: Option<ServingStatus>,
    looks: Interval,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
    _watching: OwnedSemaphorePermit,
}

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_over {
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
                this.is_over = true;
                return Poll::Ready(Some(Err(this.call.fail(&ApiError::going_down()))));
            }
            ready!(this.looks.poll_tick(context));
        }
    }
}
