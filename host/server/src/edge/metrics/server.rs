//! Series about the server as a whole.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Labels, families, gauge, write};
use crate::edge::state::Edge;
use crate::observe::logs;
use crate::observe::server_metrics::{ListenerMetrics, ServerMetrics};
use guesthouse_control::registry::metrics::DeploymentMetrics;
use guesthouse_runtime::measure::Counter;

pub(super) fn encode(edge: &Edge, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    write(encoder, &families::BUILD_INFO, [(version, ConstGauge::new(1_i64))])?;
    let is_ready = edge.registry.snapshot().is_ready() && !edge.draining.load(Ordering::Relaxed);
    write(encoder, &families::READY, [(vec![], ConstGauge::new(i64::from(is_ready)))])?;
    requests(&edge.meters, encoder)?;
    let failures = edge.keys.failures().counts();
    let failures = failures
        .map(|(reason, count)| (vec![("reason", reason.to_owned())], ConstCounter::new(count)));
    write(encoder, &families::AUTH_FAILURES, failures)?;
    connections(&edge.meters, encoder)?;
    let limit = edge.policy.load().limits.bodies_in_flight_bytes;
    let in_flight = edge.bodies.in_flight();
    write(encoder, &families::BODIES_IN_FLIGHT, [(vec![], gauge(in_flight))])?;
    write(encoder, &families::BODIES_IN_FLIGHT_LIMIT, [(vec![], gauge(limit))])?;
    deployments(&edge.control.loader().meters, encoder)?;
    lost(edge, encoder)
}

fn listeners(meters: &ServerMetrics) -> [(Labels, &ListenerMetrics); 3] {
    let of = |name: &str| vec![("listener", name.to_owned())];
    [(of("public"), &meters.public), (of("grpc"), &meters.grpc), (of("admin"), &meters.admin)]
}

fn requests(meters: &ServerMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let counter = |count: &Counter| ConstCounter::new(count.total());
    let with = |labels: &Labels, more: &[(&'static str, String)]| [labels, more].concat();
    let listeners = listeners(meters);
    let answers = listeners.iter().flat_map(|(labels, listener)| {
        let of_route = listener.answers.map(|route, statuses| {
            let route = ("route", route.clone());
            statuses.map(|status, count| {
                let code = ("code", status.to_string());
                (with(labels, &[route.clone(), code]), counter(count))
            })
        });
        of_route.into_iter().flatten()
    });
    write(encoder, &families::HTTP_REQUESTS, answers)?;
    let calls = meters.grpc.calls.map(|method, statuses| {
        let method = ("method", method.clone());
        statuses.map(|status, count| {
            (vec![method.clone(), ("grpc_status", (*status).to_owned())], counter(count))
        })
    });
    write(encoder, &families::GRPC_CALLS, calls.into_iter().flatten())?;
    let errors = listeners.iter().flat_map(|(labels, listener)| {
        listener.errors.map(|code, count| {
            (with(labels, &[("error_code", (*code).to_owned())]), counter(count))
        })
    });
    write(encoder, &families::HTTP_ERRORS, errors)?;
    let now = |(labels, listener): &(Labels, &ListenerMetrics)| {
        (labels.clone(), ConstGauge::new(listener.in_flight.get()))
    };
    write(encoder, &families::HTTP_REQUESTS_IN_FLIGHT, listeners.iter().map(now))
}

fn connections(meters: &ServerMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let listeners = listeners(meters);
    let open = listeners
        .iter()
        .map(|(labels, listener)| (labels.clone(), ConstGauge::new(listener.open.get())));
    write(encoder, &families::CONNECTIONS_OPEN, open)?;
    let accepted = listeners
        .iter()
        .map(|(labels, listener)| (labels.clone(), ConstCounter::new(listener.accepted.total())));
    write(encoder, &families::CONNECTIONS_ACCEPTED, accepted)
}

fn deployments(meters: &DeploymentMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let outcome =
        |is_good: bool| ("outcome", if is_good { "succeeded" } else { "failed" }.to_owned());
    let deployments = meters
        .outcomes
        .map(|is_good, count| (vec![outcome(*is_good)], ConstCounter::new(count.total())));
    write(encoder, &families::DEPLOYMENTS, deployments)?;
    let times = meters.steps.map(|(step, is_good), done| {
        let labels = vec![("step", (*step).to_owned()), outcome(*is_good)];
        (labels, ConstCounter::new(done.times.total()))
    });
    write(encoder, &families::DEPLOY_STEPS, times)?;
    let seconds = meters.steps.map(|(step, is_good), done| {
        let labels = vec![("step", (*step).to_owned()), outcome(*is_good)];
        (labels, ConstCounter::new(done.micros.total() as f64 / 1e6))
    });
    write(encoder, &families::DEPLOY_STEP_SECONDS, seconds)
}

/// Records that are dropped rather than waited for.
fn lost(edge: &Edge, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let lines = ConstCounter::new(logs::dropped() as u64);
    write(encoder, &families::LOG_LINES_DROPPED, [(vec![], lines)])?;
    let outcome = |(outcome, count): (&str, u64)| {
        (vec![("outcome", outcome.to_owned())], ConstCounter::new(count))
    };
    write(encoder, &families::CAPTURED_REQUESTS, edge.capture.counts().map(outcome))?;
    let Some(tracer) = &edge.tracer else { return Ok(()) };
    let sent = tracer.span_counts();
    let spans = [
        ("exported", sent.exported.total()),
        ("failed", sent.failed.total()),
        ("dropped", sent.dropped.total()),
    ];
    write(encoder, &families::SPANS, spans.map(outcome))
}
