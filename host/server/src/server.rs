//! The life of a server: listen, answer health checks, load versions, serve, drain, stop.

mod bind;
mod error;
mod notify;
mod reload;
mod signals;
mod state_folder;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::error::ServeError;
use self::notify::{ServiceManager, run_watchdog};
use self::reload::Reloader;
pub use self::reload::Reread;
use self::signals::{Signal, Signals};
use self::state_folder::open_state;
use crate::admin::{self, Admin};
use crate::config::{GrpcListen, MetricsListener, Settings};
use crate::edge::{self, AnswerStore, Bodies, Edge, Listener, ModelRates, Pages, Services, Tls};
use crate::observe::capture::CaptureWriter;
use crate::observe::logs;
use crate::observe::trace::Tracer;
use guesthouse_control::control::{self, Control, ControlError};
use guesthouse_control::keys::DuplicateKey;
use guesthouse_control::keys::Scopes;
use guesthouse_control::shadow::{ShadowLimits, Shadows};
use guesthouse_control::traffic::Traffic;
use guesthouse_runtime::inference::InferenceThreads;
use guesthouse_runtime::machine;

/// File descriptors that are not for connections: artifacts, compiled code, pipes to child processes, timers.
const RESERVED_FILES: usize = 128;

/// How long the responses to interrupted requests may take: a few ticks, and a round trip.
const INTERRUPT_TIME: Duration = Duration::from_secs(1);

/// How long writing the last spans and captured requests may take.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Serve until a signal to stop. `reread` reads the configuration again; `started` is the time at which the
/// process started.
///
/// # Errors
/// [`ServeError`]; [`ServeError::Drain`] if requests were cut off.
pub fn run(settings: Settings, reread: Reread, started: Instant) -> Result<(), ServeError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // tokio's own variable keeps its meaning. Its default does not know every quota of control groups.
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        runtime.worker_threads(machine::cores());
    }
    let runtime = runtime.enable_all().build().map_err(ServeError::Start)?;
    let outcome = runtime.block_on(serve(settings, reread, started));
    // A thread that still loads versions ends with the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(mut settings: Settings, reread: Reread, started: Instant) -> Result<(), ServeError> {
    // Before the log says where the server listens: whoever reads that may send a signal.
    let mut signals = Signals::listen().map_err(ServeError::Start)?;
    let tls = settings.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
    let sockets = bind::listen(&settings.listen).await?;
    let memory_mib = settings.limits.memory_bytes >> 20;
    let threads_per_version = settings.limits.model.concurrency;
    tracing::info!(cores = machine::cores(), memory_mib, threads_per_version, "resources");
    // The store holds the lock of the state folder until the end.
    let (loader, ledger) = open_state(&mut settings)?;
    let stack_bytes = loader.engines.thread_stack_bytes();
    let traffic = Arc::clone(&loader.traffic);
    let control = Arc::new(Control::new(loader, ledger, settings.max_parked.clone())?);
    configure_keys(&control, &settings)?;
    control.configure(settings.splits.clone())?;
    let (interrupt, interrupted) = watch::channel(false);
    let edge = Arc::new(edge(&settings, &control, traffic, interrupted, stack_bytes)?);
    let limits = edge.policy.load().limits;
    let trusted = Arc::new(settings.trusted_proxies.clone());
    let (stop, stopping) = watch::channel(false);
    let mut servers = JoinSet::new();
    let listener = |sockets, kind| {
        let (tls, trusted_proxies) = (tls.clone(), Arc::clone(&trusted));
        Listener { sockets, tls, kind, trusted_proxies }
    };
    if let Some((sockets, admin)) = admin(&settings, &control, &edge, &stopping).await? {
        let endpoints = admin::endpoints(admin, &edge);
        let listener = listener(sockets, edge::ListenerKind::Admin(Arc::clone(&edge.meters)));
        servers.spawn(edge::serve(listener, endpoints, limits, stopping.clone()));
    }
    if let Some((sockets, kind)) = grpc(&settings, &edge).await? {
        let endpoints = edge::grpc_endpoints(Arc::clone(&edge), stopping.clone());
        servers.spawn(edge::serve(listener(sockets, kind), endpoints, limits, stopping.clone()));
    }
    for address in bind::addresses(&sockets) {
        tracing::info!(%address, "listening");
    }
    let repository = settings.repository.clone();
    let manager = Arc::new(ServiceManager::default());
    let start = Start { time: started, manager: Arc::clone(&manager) };
    let loading = load(Arc::clone(&control), repository, limits.repository_interval, start);
    let watchdog = tokio::spawn(run_watchdog());
    let endpoints = edge::endpoints(Arc::clone(&edge));
    let public = listener(sockets, edge::ListenerKind::Public(Arc::clone(&edge.meters)));
    servers.spawn(edge::serve(public, endpoints, limits, stopping.clone()));
    if let Some(tls) = tls {
        tokio::spawn(tls.follow(stopping.clone()));
    }
    let traffic_log =
        tokio::spawn(log_traffic(Arc::clone(&edge), limits.traffic_log_interval, stopping));
    let reloader = Reloader { reread, control, edge: Arc::clone(&edge), started: settings };

    let outcome = run_until_stop(&mut signals, loading, Arc::new(reloader), &manager).await;
    manager.stopping();
    edge.draining.store(true, Ordering::Relaxed);
    if let Ok(Signal::Terminate) = outcome {
        tracing::info!(seconds = limits.linger_time.as_secs(), "not ready any more, still serving");
        // A second signal ends the linger time.
        let _ = tokio::time::timeout(limits.linger_time, signals.next()).await;
    }
    tracing::info!("draining");
    // The tasks below hold the receivers, and end after this.
    let _ = stop.send(true);
    let drained = drain(servers, limits.drain_time, &interrupt).await;
    let _ = traffic_log.await;
    let closing = Arc::clone(&edge);
    let _ = tokio::task::spawn_blocking(move || closing.finish(FLUSH_TIME)).await;
    watchdog.abort();
    tracing::info!(drained, "stopped");
    outcome.map(drop).and(if drained { Ok(()) } else { Err(ServeError::Drain(limits.drain_time)) })
}

/// Apply the configured keys. A key whose name an operator has given to another key meanwhile is left out, so
/// that the others work.
fn configure_keys(control: &Control, settings: &Settings) -> Result<(), ControlError> {
    let mut keys = settings.keys.clone();
    loop {
        match control.configure_keys(keys.clone(), settings.key_rate) {
            Err(ControlError::DuplicateKey(DuplicateKey(name))) => {
                tracing::error!(%name, "a configured key is ignored: another key has its name");
                keys.retain(|key| key.name != name);
            }
            outcome => return outcome,
        }
    }
}

/// Handle signals until one to stop, or until the repository folder cannot be read.
async fn run_until_stop(
    signals: &mut Signals,
    loading: impl Future<Output = Result<Infallible, ServeError>>,
    reloader: Arc<Reloader>,
    manager: &Arc<ServiceManager>,
) -> Result<Signal, ServeError> {
    let mut loading = pin!(loading);
    loop {
        tokio::select! {
            signal = signals.any() => match signal {
                Some(signal) => return Ok(signal),
                None => {
                    let (reloader, manager) = (Arc::clone(&reloader), Arc::clone(manager));
                    let reload = move || manager.while_reloading(|| reloader.reload());
                    // One reload at a time. A panic is logged, and the last valid configuration stays.
                    let _ = tokio::task::spawn_blocking(reload).await;
                }
            },
            Err(error) = loading.as_mut() => return Err(error),
        }
    }
}

fn edge(
    settings: &Settings,
    control: &Arc<Control>,
    traffic: Arc<Traffic>,
    interrupted: watch::Receiver<bool>,
    stack_bytes: usize,
) -> Result<Edge, ServeError> {
    let mut limits = settings.limits;
    limits.connections = limits.connections.min(files_for_connections());
    let inference =
        InferenceThreads::start(limits.inference, stack_bytes).map_err(ServeError::Start)?;
    let shadows = Shadows::start(ShadowLimits::default(), stack_bytes);
    let tracer = Tracer::start(&settings.tracing);
    let tracer = tracer.map_err(|error| ServeError::Start(io::Error::other(error)))?;
    let keys = Arc::clone(control.keys());
    if !keys.any_scopes(Scopes::predicts_something) {
        tracing::warn!("there are no keys: every prediction will be refused");
    }
    Ok(Edge {
        registry: Arc::clone(control.registry()),
        control: Arc::clone(control),
        inference,
        answers: Arc::new(AnswerStore::new(settings.answers)),
        shadows: Arc::new(shadows.map_err(ServeError::Start)?),
        keys,
        model_rates: ModelRates::new(&settings.model_rates),
        policy: ArcSwap::from_pointee(reload::policy(settings, limits)),
        bodies: Bodies::new(limits.bodies_in_flight_bytes),
        traffic,
        services: Services::default(),
        pages: Pages::start().map_err(ServeError::Start)?,
        meters: Arc::default(),
        tracer: tracer.map(Arc::new),
        capture: CaptureWriter::start(settings.capture.clone()).map_err(ServeError::Start)?,
        draining: AtomicBool::new(false),
        interrupted,
    })
}

/// The listeners and the state of the admin API, if there is a key for it.
async fn admin(
    settings: &Settings,
    control: &Arc<Control>,
    edge: &Edge,
    stopping: &watch::Receiver<bool>,
) -> Result<Option<(Vec<TcpListener>, Arc<Admin>)>, ServeError> {
    if !control.keys().any_scopes(Scopes::administers) {
        tracing::info!(
            "there are no admin keys: what is served cannot be changed over the network"
        );
        if settings.metrics.listener == MetricsListener::Admin {
            tracing::warn!("/metrics is served by the admin listener, which is not opened");
        }
        return Ok(None);
    }
    let listeners = bind::listen(&settings.admin_listen).await?;
    for address in bind::addresses(&listeners) {
        tracing::info!(%address, "admin listening");
    }
    let (control, shadows) = (Arc::clone(control), Arc::clone(&edge.shadows));
    let patience = settings.limits.body_time;
    let admin = Admin::new(control, shadows, patience, stopping.clone());
    Ok(Some((listeners, Arc::new(admin))))
}

/// The listeners of gRPC, if it is enabled.
async fn grpc(
    settings: &Settings,
    edge: &Edge,
) -> Result<Option<(Vec<TcpListener>, edge::ListenerKind)>, ServeError> {
    let GrpcListen::At(wanted) = &settings.grpc_listen else { return Ok(None) };
    let listeners = bind::listen(wanted).await?;
    for address in bind::addresses(&listeners) {
        tracing::info!(%address, "grpc listening");
    }
    Ok(Some((listeners, edge::ListenerKind::Grpc(Arc::clone(&edge.meters)))))
}

/// Wait until running requests have ended. Those that have not after `time` are interrupted, and their callers
/// get an error. Returns whether there were none.
async fn drain(mut servers: JoinSet<()>, time: Duration, interrupt: &watch::Sender<bool>) -> bool {
    let mut ended = pin!(async { while servers.join_next().await.is_some() {} });
    if tokio::time::timeout(time, ended.as_mut()).await.is_ok() {
        return true;
    }
    let _ = interrupt.send(true);
    let _ = tokio::time::timeout(INTERRUPT_TIME, ended).await;
    false
}

/// Raise the limit of open files to its maximum. Returns how many connections it permits.
fn files_for_connections() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(RESERVED_FILES);
    connections.max(1)
}

/// The start of the process, and the service manager that is notified when it is complete.
struct Start {
    time: Instant,
    manager: Arc<ServiceManager>,
}

/// Load versions on a thread of its own, and watch the repository folder. Returns only with an error.
async fn load(
    control: Arc<Control>,
    repository: PathBuf,
    interval: Option<Duration>,
    start: Start,
) -> Result<Infallible, ServeError> {
    let folder = repository.clone();
    let work = tokio::task::spawn_blocking(move || {
        let registry = Arc::clone(control.registry());
        let mut reported = None;
        let mut report = |is_all_tried: bool| {
            let is_ready = registry.snapshot().is_ready();
            if reported == Some(true) || !(is_ready || is_all_tried && reported.is_none()) {
                return;
            }
            let milliseconds = u64::try_from(start.time.elapsed().as_millis()).unwrap_or(u64::MAX);
            if is_ready {
                tracing::info!(milliseconds, "ready");
            } else {
                tracing::warn!(milliseconds, "not ready: no version could be loaded");
            }
            start.manager.ready();
            reported = Some(is_ready);
        };
        control.restore()?;
        // The versions from before the restart are served now. The folder is read later.
        report(false);
        let maintained = Arc::clone(&control);
        let maintenance = std::thread::Builder::new().name("maintenance".to_owned());
        maintenance
            .stack_size(control.loader().engines.thread_stack_bytes())
            .spawn(move || control::run_maintenance(&maintained))?;
        control::watch_folder(&control, &folder, interval, || report(true))
    });
    match work.await {
        Ok(Ok(never)) => Ok(never),
        Ok(Err(error)) => Err(ServeError::Repository(repository, error)),
        Err(error) => Err(ServeError::Start(io::Error::other(error))),
    }
}

/// Log the traffic counters at this interval, and once more at the end.
async fn log_traffic(edge: Arc<Edge>, interval: Duration, stopping: watch::Receiver<bool>) {
    let (mut last, mut dropped) = (std::collections::BTreeMap::new(), 0);
    let mut interval = tokio::time::interval(interval);
    let stopped = wait_for(stopping);
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = &mut stopped => break,
        }
        edge.traffic.log(&mut last);
        logs::report_dropped(&mut dropped);
    }
    edge.traffic.log(&mut last);
    logs::report_dropped(&mut dropped);
}

async fn wait_for(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender was dropped, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}
