//! The life of a server: bind, answer health at once, load, serve, drain, stop.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::config::Settings;
use crate::edge::{self, Edge};
use crate::guest::{EngineError, Engines};
use crate::inference::Inference;
use crate::keys::Keys;
use crate::observe::logs;
use crate::registry::{Budget, Loader, Registry};
use crate::shadow::{ShadowLimits, Shadows};
use crate::store::{Store, StoreError};

/// Files that are not for connections: artifacts, compiled code, pipes to children, timers.
const RESERVED_FILES: usize = 128;

/// A server cannot start, or did not stop in time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken or not ours.
    #[error("listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The machine refuses threads, signals or timers.
    #[error("start")]
    Start(#[source] io::Error),
    /// The repository folder cannot be read.
    #[error("read the repository folder {0:?}")]
    Repository(PathBuf, #[source] io::Error),
    /// The engine cannot be set up.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The state folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Requests were still under way when the time to drain was over.
    #[error("drain within {} s: requests were cut off", .0.as_secs())]
    Drain(Duration),
}

/// Serve until a signal says otherwise. `started` is when the process began.
///
/// # Errors
/// [`ServeError`]; one that does not stop in time has cut requests off.
pub fn run(settings: Settings, started: Instant) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(ServeError::Start)?;
    let outcome = runtime.block_on(serve(settings, started));
    // Loading may still be under way on a thread of its own; it dies with the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(settings: Settings, started: Instant) -> Result<(), ServeError> {
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.map_err(|error| ServeError::Listen(settings.listen, error))?;
    let address = listener.local_addr().map_err(ServeError::Start)?;
    // Held until the end, and with it the lock of the state folder.
    let loader = Arc::new(loader(&settings)?);
    let registry = Arc::new(Registry::new(settings.splits));
    let mut limits = settings.limits;
    limits.connections = limits.connections.min(files_for_connections());
    let inference = Inference::start(limits.inference, loader.engines.thread_stack_bytes());
    let shadows = Shadows::start(ShadowLimits::default(), loader.engines.thread_stack_bytes());
    let edge = Arc::new(Edge {
        registry: Arc::clone(&registry),
        inference: inference.map_err(ServeError::Start)?,
        shadows: Arc::new(shadows.map_err(ServeError::Start)?),
        captured: BTreeSet::new(),
        keys: Keys::new(settings.keys),
        default_model: settings.default_model,
        sticky_headers: settings.sticky_headers,
        limits,
        bodies: Arc::new(Semaphore::new(limits.bodies_in_flight_bytes)),
        traffic: Arc::clone(&loader.traffic),
        draining: AtomicBool::new(false),
    });
    if edge.keys.is_empty() {
        tracing::warn!("there are no keys: every prediction will be refused");
    }
    tracing::info!(%address, "listening");
    let loading = load(Arc::clone(&loader), registry, settings.repository, started);
    let (stop, stopping) = watch::channel(false);
    let endpoints = edge::endpoints(Arc::clone(&edge));
    let server = tokio::spawn(edge::serve(listener, endpoints, limits, stopping.clone()));
    let reporter = tokio::spawn(report(Arc::clone(&edge), stopping));

    // Whichever comes first: a signal, or a repository that cannot be read.
    let outcome = tokio::select! {
        signal = wait_for_signal() => signal.map_err(ServeError::Start),
        Err(error) = loading => Err(error),
    };
    edge.draining.store(true, Ordering::Relaxed);
    tracing::info!("draining");
    // The receivers live in the tasks below, which end only after this.
    let _ = stop.send(true);
    let drained = tokio::time::timeout(limits.drain_time, server).await.is_ok();
    let _ = reporter.await;
    tracing::info!(drained, "stopped");
    outcome.and(if drained { Ok(()) } else { Err(ServeError::Drain(limits.drain_time)) })
}

/// Ask the system for as many open files as it lets this process have; how many connections they
/// are enough for.
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

fn loader(settings: &Settings) -> Result<Loader, ServeError> {
    let limits = std::iter::once(&settings.limits.model).chain(settings.models.values());
    let stacks = limits.map(|limits| limits.instance.stack_bytes);
    let mut engine = settings.limits.engine;
    // Beside what versions have set aside for serving.
    let shadows = u32::try_from(ShadowLimits::default().threads).unwrap_or(u32::MAX);
    engine.max_instances = engine.max_instances.saturating_add(shadows);
    let engines = Engines::serving(engine, stacks)?;
    let store = Store::open(&settings.state, engines.fingerprint())?;
    Ok(Loader {
        engines,
        store,
        limits: settings.limits.preinit,
        general: settings.limits.model,
        models: settings.models.clone(),
        traffic: Arc::default(),
        budget: Budget::new(settings.limits.engine.max_instances, settings.limits.memory_bytes),
    })
}

/// Load on a thread of its own. Ends only with an error: a server that has loaded goes on.
async fn load(
    loader: Arc<Loader>,
    registry: Arc<Registry>,
    repository: PathBuf,
    started: Instant,
) -> Result<(), ServeError> {
    let folder = repository.clone();
    let work = tokio::task::spawn_blocking(move || {
        let outcome = loader.load_folder(&registry, &folder);
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if outcome.is_ok() && registry.snapshot().is_ready() {
            tracing::info!(milliseconds, "ready");
        } else if outcome.is_ok() {
            tracing::error!(milliseconds, "not ready: no version could be loaded");
        }
        outcome
    });
    match work.await {
        Ok(Ok(())) => std::future::pending().await,
        Ok(Err(error)) => Err(ServeError::Repository(repository, error)),
        Err(error) => Err(ServeError::Start(io::Error::other(error))),
    }
}

/// Log the counters now and then, and once more at the end.
async fn report(edge: Arc<Edge>, stopping: watch::Receiver<bool>) {
    let (mut last, mut dropped) = (std::collections::BTreeMap::new(), 0);
    let mut interval = tokio::time::interval(edge.limits.traffic_log_interval);
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
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn wait_for_signal() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
