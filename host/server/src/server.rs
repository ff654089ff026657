//! The life of a server: bind, answer health at once, load, serve, drain, stop.

mod bind;
mod reload;

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
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::reload::Reloader;
pub use self::reload::Reread;
use crate::admin::{self, Admin};
use crate::config::{GrpcListen, ListenAddress, MetricsListener, Settings};
use crate::edge::{
    self, Answers, Bodies, Edge, Entrance, ModelRates, Pages, Services, Tls, TlsError,
};
use crate::observe::capture::Capture;
use crate::observe::logs;
use crate::observe::trace::Tracer;
use guesthouse_artifact::{ArtifactError, CONTRACT_VERSION};
use guesthouse_control::control::{self, Control, ControlError};
use guesthouse_control::keys::DuplicateKey;
use guesthouse_control::keys::Scopes;
use guesthouse_control::ledger::{Ledger, LedgerError};
use guesthouse_control::registry::Loader;
use guesthouse_control::rollout::ModelState;
use guesthouse_control::shadow::{ShadowLimits, Shadows};
use guesthouse_control::traffic::Traffic;
use guesthouse_runtime::guest::{EngineError, Engines};
use guesthouse_runtime::inference::Inference;
use guesthouse_runtime::machine;
use guesthouse_runtime::preinit::queue::CompileQueue;
use guesthouse_runtime::store::{Store, StoreError};
use guesthouse_runtime::version::Budget;

/// Files that are not for connections: artifacts, compiled code, pipes to children, timers.
const RESERVED_FILES: usize = 128;

/// How long interrupted requests have to tell their callers: a few ticks, and a round trip.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long the last spans and captured requests have to be written.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// A server cannot start, or did not stop in time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken or not ours, or the name is not known.
    #[error("listen on {0}")]
    Listen(ListenAddress, #[source] io::Error),
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
    /// What is served cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The splits of the configuration cannot be put into force.
    #[error(transparent)]
    Configure(#[from] ControlError),
    /// The certificate cannot be used.
    #[error("set up TLS")]
    Tls(#[from] TlsError),
    /// Requests were still under way when the time to drain was over.
    #[error("drain within {} s: requests were cut off", .0.as_secs())]
    Drain(Duration),
}

/// Serve until a signal says otherwise. `reread` gives the settings again, from what the operator has
/// written by then; `started` is when the process began.
///
/// # Errors
/// [`ServeError`]; one that does not stop in time has cut requests off.
pub fn run(settings: Settings, reread: Reread, started: Instant) -> Result<(), ServeError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // The library's own variable keeps its meaning; its default misses some quotas.
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        runtime.worker_threads(machine::cores());
    }
    let runtime = runtime.enable_all().build().map_err(ServeError::Start)?;
    let outcome = runtime.block_on(serve(settings, reread, started));
    // Loading may still be under way on a thread of its own; it dies with the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(mut settings: Settings, reread: Reread, started: Instant) -> Result<(), ServeError> {
    // From here on: whoever reads where it listens may stop it.
    let mut signals = Signals::listen().map_err(ServeError::Start)?;
    let tls = settings.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
    let listeners = bind::listen(&settings.listen).await?;
    let memory_mib = settings.limits.memory_bytes >> 20;
    let threads_per_version = settings.limits.model.concurrency;
    tracing::info!(cores = machine::cores(), memory_mib, threads_per_version, "resources");
    // Held until the end, and with it the lock of the state folder.
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
    if let Some((listeners, admin)) = admin(&settings, &control, &edge, &stopping).await? {
        let endpoints = admin::endpoints(admin, &edge);
        let way = edge::Way::Admin(Arc::clone(&edge.meters));
        let entrance = Entrance { listeners, tls: tls.clone(), way, trusted: Arc::clone(&trusted) };
        servers.spawn(edge::serve(entrance, endpoints, limits, stopping.clone()));
    }
    if let Some((listeners, way)) = grpc(&settings, &edge).await? {
        let endpoints = edge::grpc_endpoints(Arc::clone(&edge), stopping.clone());
        let entrance = Entrance { listeners, tls: tls.clone(), way, trusted: Arc::clone(&trusted) };
        servers.spawn(edge::serve(entrance, endpoints, limits, stopping.clone()));
    }
    for address in bind::addresses(&listeners) {
        tracing::info!(%address, "listening");
    }
    let repository = settings.repository.clone();
    let loading = load(Arc::clone(&control), repository, limits.repository_interval, started);
    let endpoints = edge::endpoints(Arc::clone(&edge));
    let way = edge::Way::Public(Arc::clone(&edge.meters));
    let entrance = Entrance { listeners, tls: tls.clone(), way, trusted: Arc::clone(&trusted) };
    servers.spawn(edge::serve(entrance, endpoints, limits, stopping.clone()));
    if let Some(tls) = tls {
        tokio::spawn(tls.follow(stopping.clone()));
    }
    let reporter = tokio::spawn(report(Arc::clone(&edge), limits.traffic_log_interval, stopping));
    let reloader = Reloader { reread, control, edge: Arc::clone(&edge), started: settings };

    let outcome = stay(&mut signals, loading, Arc::new(reloader)).await;
    edge.draining.store(true, Ordering::Relaxed);
    if let Ok(Signal::Terminate) = outcome {
        tracing::info!(seconds = limits.linger_time.as_secs(), "not ready any more, still serving");
        // Whoever cannot wait says so again.
        let _ = tokio::time::timeout(limits.linger_time, signals.next()).await;
    }
    tracing::info!("draining");
    // The receivers live in the tasks below, which end only after this.
    let _ = stop.send(true);
    let drained = drain(servers, limits.drain_time, &interrupt).await;
    let _ = reporter.await;
    let closing = Arc::clone(&edge);
    let _ = tokio::task::spawn_blocking(move || closing.finish(LAST_WRITES)).await;
    tracing::info!(drained, "stopped");
    outcome.map(drop).and(if drained { Ok(()) } else { Err(ServeError::Drain(limits.drain_time)) })
}

/// Put the configured keys into force. One whose name somebody has given to another key meanwhile stays
/// out: everybody else's requests are worth more than its own.
fn configure_keys(control: &Control, settings: &Settings) -> Result<(), ControlError> {
    let mut keys = settings.keys.clone();
    loop {
        match control.configure_keys(keys.clone(), settings.key_rate) {
            Err(ControlError::DuplicateKey(DuplicateKey(name))) => {
                tracing::error!(%name, "a configured key is left out: there is another of its name");
                keys.retain(|key| key.name != name);
            }
            outcome => return outcome,
        }
    }
}

/// Until a signal to stop, or until the repository cannot be read.
async fn stay(
    signals: &mut Signals,
    loading: impl Future<Output = Result<Infallible, ServeError>>,
    reloader: Arc<Reloader>,
) -> Result<Signal, ServeError> {
    let mut loading = pin!(loading);
    loop {
        tokio::select! {
            signal = signals.any() => match signal {
                Some(signal) => return Ok(signal),
                None => {
                    let reloader = Arc::clone(&reloader);
                    // One after the other; a panic is in the log, and the last good one holds.
                    let _ = tokio::task::spawn_blocking(move || reloader.reload()).await;
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
    let inference = Inference::start(limits.inference, stack_bytes).map_err(ServeError::Start)?;
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
        answers: Arc::new(Answers::new(settings.answers)),
        shadows: Arc::new(shadows.map_err(ServeError::Start)?),
        keys,
        model_rates: ModelRates::of(&settings.model_rates),
        policy: ArcSwap::from_pointee(reload::policy(settings, limits)),
        bodies: Bodies::new(limits.bodies_in_flight_bytes),
        traffic,
        services: Services::default(),
        pages: Pages::start().map_err(ServeError::Start)?,
        meters: Arc::default(),
        tracer: tracer.map(Arc::new),
        capture: Capture::start(settings.capture.clone()).map_err(ServeError::Start)?,
        draining: AtomicBool::new(false),
        interrupted,
    })
}

/// The admin API, if anybody may use it.
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

/// Where gRPC is served, if it is.
async fn grpc(
    settings: &Settings,
    edge: &Edge,
) -> Result<Option<(Vec<TcpListener>, edge::Way)>, ServeError> {
    let GrpcListen::At(wanted) = &settings.grpc_listen else { return Ok(None) };
    let listeners = bind::listen(wanted).await?;
    for address in bind::addresses(&listeners) {
        tracing::info!(%address, "grpc listening");
    }
    Ok(Some((listeners, edge::Way::Grpc(Arc::clone(&edge.meters)))))
}

/// Wait until requests under way are over; those that are not in time are interrupted, which their
/// callers are told. Whether there were none.
async fn drain(mut servers: JoinSet<()>, time: Duration, interrupt: &watch::Sender<bool>) -> bool {
    let mut over = pin!(async { while servers.join_next().await.is_some() {} });
    if tokio::time::timeout(time, over.as_mut()).await.is_ok() {
        return true;
    }
    let _ = interrupt.send(true);
    let _ = tokio::time::timeout(LAST_WORDS, over).await;
    false
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

/// Open the state folder. The demonstration leaves one alone in which versions are deployed that this
/// release cannot load, and has another one beside it.
fn open_state(settings: &mut Settings) -> Result<(Loader, Ledger), ServeError> {
    let on_loss = settings.start.on_ledger_loss;
    let open = |settings: &Settings| {
        let loader = loader(settings)?;
        let store = &loader.store;
        let ledger = Ledger::open(store.folder(), store.has_artifacts()?, on_loss)?;
        Ok::<_, ServeError>((loader, ledger))
    };
    let (loader, ledger) = open(settings)?;
    if !settings.start.is_demo {
        return Ok((loader, ledger));
    }
    let states = ledger.models()?;
    let mut digests = states.values().flat_map(ModelState::loaded).map(|(_, digest)| digest);
    let is_outdated =
        |digest| matches!(loader.store.artifact(digest), Err(ArtifactError::OtherContract { .. }));
    if !digests.any(is_outdated) {
        return Ok((loader, ledger));
    }
    drop((loader, ledger));
    let mut fresh = settings.state.clone().into_os_string();
    fresh.push(format!("-contract-{CONTRACT_VERSION}"));
    let old = std::mem::replace(&mut settings.state, fresh.into());
    tracing::warn!(
        old = %old.display(),
        state = %settings.state.display(),
        "the state folder is of a release with another contract: the demonstration leaves it alone and \
         uses another one; remove the old one if nobody needs it"
    );
    open(settings)
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
        preinit_limits: settings.limits.preinit,
        default_limits: settings.limits.model,
        model_limits: settings.models.clone(),
        meters: Arc::default(),
        child_environment: logs::environment,
        traffic: Arc::default(),
        queue: CompileQueue::new(settings.limits.preinit.memory_bytes),
        budget: Budget::new(settings.limits.engine.max_instances, settings.limits.memory_bytes),
    })
}

/// Load on a thread of its own, and keep to what the repository folder says. Ends only with an error.
async fn load(
    control: Arc<Control>,
    repository: PathBuf,
    interval: Option<Duration>,
    started: Instant,
) -> Result<Infallible, ServeError> {
    let folder = repository.clone();
    let work = tokio::task::spawn_blocking(move || {
        let registry = Arc::clone(control.registry());
        let mut said = None;
        let mut say = |has_tried: bool| {
            let is_ready = registry.snapshot().is_ready();
            if said == Some(true) || !(is_ready || has_tried && said.is_none()) {
                return;
            }
            let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            if is_ready {
                tracing::info!(milliseconds, "ready");
            } else {
                tracing::warn!(milliseconds, "not ready: no version could be loaded");
            }
            said = Some(is_ready);
        };
        control.restore()?;
        // What was served before is served again; the folder can wait.
        say(false);
        let kept_up = Arc::clone(&control);
        let upkeep = std::thread::Builder::new().name("upkeep".to_owned());
        upkeep
            .stack_size(control.loader().engines.thread_stack_bytes())
            .spawn(move || control::run_maintenance(&kept_up))?;
        control::watch_folder(&control, &folder, interval, || say(true))
    });
    match work.await {
        Ok(Ok(never)) => Ok(never),
        Ok(Err(error)) => Err(ServeError::Repository(repository, error)),
        Err(error) => Err(ServeError::Start(io::Error::other(error))),
    }
}

/// Log the counters now and then, and once more at the end.
async fn report(edge: Arc<Edge>, interval: Duration, stopping: watch::Receiver<bool>) {
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
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Terminate,
    Interrupt,
}

/// The signals to stop. Kept from the start to the end, so that none is lost between two waits.
struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    /// To read the configuration again. Never ends the process, whatever the server is doing.
    hang_up: unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hang_up = signal(SignalKind::hangup())?;
        Ok(Self { terminate, interrupt, hang_up })
    }

    /// A signal to stop.
    async fn next(&mut self) -> Signal {
        loop {
            if let Some(signal) = self.any().await {
                return signal;
            }
        }
    }

    /// A signal to stop, or none for one to read the configuration.
    async fn any(&mut self) -> Option<Signal> {
        tokio::select! {
            _ = self.terminate.recv() => Some(Signal::Terminate),
            _ = self.interrupt.recv() => Some(Signal::Interrupt),
            _ = self.hang_up.recv() => None,
        }
    }
}
