//! What is measured of the server as a whole, as series.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::{Labels, gauge, write};
use crate::edge::state::Edge;
use crate::observe::logs;
use crate::observe::server_metrics::{ListenerMetrics, ServerMetrics};
use guesthouse_control::registry::metrics::DeploymentMetrics;
use guesthouse_runtime::measure::Counter;

pub(super) fn encode(edge: &Edge, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let build = ("build_info", "The program, as a constant 1", None);
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    write(encoder, build, [(version, ConstGauge::new(1_i64))])?;
    let is_ready = edge.registry.snapshot().is_ready() && !edge.draining.load(Ordering::Relaxed);
    let ready = ("ready", "Whether the server is ready, as it tells its balancer", None);
    write(encoder, ready, [(vec![], ConstGauge::new(i64::from(is_ready)))])?;
    requests(&edge.meters, encoder)?;
    let failures = edge.keys.failures().counts();
    let failures = failures
        .map(|(reason, count)| (vec![("reason", reason.to_owned())], ConstCounter::new(count)));
    write(encoder, ("auth_failures", "Requests without a key good for them", None), failures)?;
    connections(&edge.meters, encoder)?;
    let limit = edge.policy.load().limits.bodies_in_flight_bytes;
    let in_flight = edge.bodies.in_flight();
    let bytes = Some(&Unit::Bytes);
    let bodies = ("bodies_in_flight", "Bodies of requests that are read or answered", bytes);
    write(encoder, bodies, [(vec![], gauge(in_flight))])?;
    let bodies_limit = ("bodies_in_flight_limit", "What these may come to", bytes);
    write(encoder, bodies_limit, [(vec![], gauge(limit))])?;
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
    let name = ("http_requests", "Answers by endpoint and status; 499: the caller left", None);
    write(encoder, name, answers)?;
    let calls = meters.grpc.calls.map(|method, statuses| {
        let method = ("method", method.clone());
        statuses.map(|status, count| {
            (vec![method.clone(), ("grpc_status", (*status).to_owned())], counter(count))
        })
    });
    let name = ("grpc_calls", "Calls that are over, by method and status", None);
    write(encoder, name, calls.into_iter().flatten())?;
    let errors = listeners.iter().flat_map(|(labels, listener)| {
        listener.errors.map(|code, count| {
            (with(labels, &[("error_code", (*code).to_owned())]), counter(count))
        })
    });
    write(encoder, ("http_errors", "Answers that are errors, by their code", None), errors)?;
    let now = |(labels, listener): &(Labels, &ListenerMetrics)| {
        (labels.clone(), ConstGauge::new(listener.in_flight.get()))
    };
    let in_flight = ("http_requests_in_flight", "Requests that are not answered yet", None);
    write(encoder, in_flight, listeners.iter().map(now))
}

fn connections(meters: &ServerMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let listeners = listeners(meters);
    let open = listeners
        .iter()
        .map(|(labels, listener)| (labels.clone(), ConstGauge::new(listener.open.get())));
    write(encoder, ("connections_open", "Connections that are open", None), open)?;
    let accepted = listeners
        .iter()
        .map(|(labels, listener)| (labels.clone(), ConstCounter::new(listener.accepted.total())));
    write(encoder, ("connections_accepted", "Connections since the start", None), accepted)
}

fn deployments(meters: &DeploymentMetrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let outcome =
        |is_good: bool| ("outcome", if is_good { "succeeded" } else { "failed" }.to_owned());
    let deployments = meters
        .outcomes
        .map(|is_good, count| (vec![outcome(*is_good)], ConstCounter::new(count.total())));
    write(encoder, ("deployments", "Deployments that came to an end", None), deployments)?;
    let times = meters.steps.map(|(step, is_good), done| {
        let labels = vec![("step", (*step).to_owned()), outcome(*is_good)];
        (labels, ConstCounter::new(done.times.total()))
    });
    write(encoder, ("deploy_steps", "Steps of making versions servable", None), times)?;
    let seconds = meters.steps.map(|(step, is_good), done| {
        let labels = vec![("step", (*step).to_owned()), outcome(*is_good)];
        (labels, ConstCounter::new(done.micros.total() as f64 / 1e6))
    });
    write(encoder, ("deploy_step", "All the time of these steps", Some(&Unit::Seconds)), seconds)
}

/// What is lost rather than waited for.
fn lost(edge: &Edge, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let lines = ConstCounter::new(logs::dropped() as u64);
    let dropped = ("log_lines_dropped", "Lines of the log that nobody read in time", None);
    write(encoder, dropped, [(vec![], lines)])?;
    let outcome = |(outcome, count): (&str, u64)| {
        (vec![("outcome", outcome.to_owned())], ConstCounter::new(count))
    };
    let captured = ("captured_requests", "Requests to be kept, by what became of them", None);
    write(encoder, captured, edge.capture.counts().map(outcome))?;
    let Some(tracer) = &edge.tracer else { return Ok(()) };
    let sent = tracer.span_counts();
    let spans = [
        ("exported", sent.exported.total()),
        ("failed", sent.failed.total()),
        ("dropped", sent.dropped.total()),
    ];
    write(encoder, ("spans", "Spans that were sent to the collector", None), spans.map(outcome))
}
