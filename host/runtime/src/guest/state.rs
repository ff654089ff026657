//! The host's state of one instance, and the implementation of the contract's imports.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{ResourceLimiter, bail};
use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use super::arithmetic::{ArithmeticUsage, IdleCores, OccupiedCore, Permit, Share};
use super::bindings::guesthouse::model::log::Level;
use super::bindings::guesthouse::model::{assets, log, types};
use super::limits::InstanceLimits;
use super::stop::{StopReason, StopSignal};
use guesthouse_arithmetic::Backend;
use guesthouse_artifact::Artifact;
use guesthouse_model::VersionId;

/// The longest log line of a guest, in bytes; part of the contract.
const MAX_LOG_LINE_BYTES: usize = 4 << 10;

/// The most bytes of an asset that one call reads; part of the contract.
const MAX_ASSET_CHUNK_BYTES: usize = 8 << 20;

/// The most resources, such as streams, that a guest may hold: they take memory of the host,
/// outside of the instance's limit.
const MAX_RESOURCES: usize = 1000;

/// The bytes that the guest's random numbers repeat: guests are deterministic, and repeated
/// snapshots must be equal.
const RANDOM_BYTES: &[u8] = b"guests of a house are given the same dice every night";

/// The host's state of one instance.
pub(crate) struct HostState {
    wasi: WasiCtx,
    table: ResourceTable,
    version: Arc<VersionId>,
    /// The artifact whose assets `init` may read; only while it runs.
    assets: Option<Arc<Artifact>>,
    memory: MemoryLimit,
    stop: Option<StopSignal>,
    arithmetic: Option<Backend>,
    arithmetic_usage: Arc<ArithmeticUsage>,
    cores: Option<(Arc<IdleCores>, Arc<Share>)>,
    log_bytes: usize,
    log_bytes_left: usize,
    log_lines_dropped: u64,
}

impl HostState {
    /// Create the state of an instance, whose arithmetic counts as usage. With `assets`, it can run
    /// `init`.
    pub(crate) fn new(
        version: Arc<VersionId>,
        limits: &InstanceLimits,
        assets: Option<Arc<Artifact>>,
        arithmetic_usage: Arc<ArithmeticUsage>,
    ) -> Self {
        let random = || Deterministic::new(RANDOM_BYTES.to_vec());
        let wasi = WasiCtx::builder()
            .secure_random(random())
            .insecure_random(random())
            .insecure_random_seed(0)
            .wall_clock(FrozenClock)
            .monotonic_clock(FrozenClock)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        Self {
            wasi,
            table,
            version,
            assets,
            memory: MemoryLimit {
                max_bytes: limits.memory_bytes,
                max_table_elements: limits.table_elements,
                bytes: 0,
                denied: false,
            },
            stop: None,
            arithmetic: limits.arithmetic.filter(is_usable),
            arithmetic_usage,
            cores: None,
            log_bytes: limits.log_bytes,
            log_bytes_left: limits.log_bytes,
            log_lines_dropped: 0,
        }
    }

    /// Count the calls of the instance among those that occupy cores, and let its operations use idle
    /// cores.
    pub(super) fn with_cores(self, cores: Arc<IdleCores>, share: Arc<Share>) -> Self {
        Self { cores: Some((cores, share)), ..self }
    }

    /// Occupy a core until the result is dropped.
    pub(super) fn occupy_core(&self) -> Option<OccupiedCore> {
        self.cores.as_ref().map(|(cores, share)| cores.occupy(share))
    }

    /// Deny further access to assets, after `init`.
    pub(crate) fn forget_assets(&mut self) {
        self.assets = None;
    }

    /// Reset the budgets for a new call.
    pub(crate) fn begin_call(&mut self, stop: &StopSignal) {
        self.stop = Some(stop.clone());
        self.log_bytes_left = self.log_bytes;
        self.log_lines_dropped = 0;
        self.memory.denied = false;
    }

    /// Log how many lines the call has lost.
    pub(crate) fn end_call(&self) {
        if self.log_lines_dropped > 0 {
            let (version, lines) = (&self.version, self.log_lines_dropped);
            tracing::warn!(target: "guest", %version, lines, "dropped lines over the log budget");
        }
    }

    /// Why the running call must end, if it must.
    pub(crate) fn stop_reason(&self) -> Option<StopReason> {
        self.stop.as_ref()?.reason(Instant::now())
    }

    /// What a call of the host's arithmetic needs, if the version is granted it.
    pub(super) fn arithmetic(&self) -> Option<Permit> {
        Some(Permit {
            backend: self.arithmetic?,
            stop: self.stop.clone(),
            memory_bytes: self.memory.max_bytes,
            usage: Arc::clone(&self.arithmetic_usage),
            cores: self.cores.clone(),
        })
    }

    /// The size of the instance's linear memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Whether the guest was denied memory during the call.
    pub(crate) fn memory_was_denied(&self) -> bool {
        self.memory.denied
    }

    pub(crate) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.memory
    }

    fn assets(&self) -> wasmtime::Result<&Artifact> {
        match &self.assets {
            Some(assets) => Ok(assets),
            None => bail!("assets can only be read during `init`"),
        }
    }
}

/// Whether this machine can compute with a backend. Guests' numbers are little-endian, and the host
/// reads them in place.
fn is_usable(backend: &Backend) -> bool {
    cfg!(target_endian = "little") && backend.is_available()
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// A clock that stands still, because the same inputs must give the same outputs at any time.
struct FrozenClock;

impl HostWallClock for FrozenClock {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl HostMonotonicClock for FrozenClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}

impl types::Host for HostState {}

impl assets::Host for HostState {
    fn size(&mut self, name: String) -> wasmtime::Result<Option<u64>> {
        Ok(self.assets()?.asset_bytes(&name).map(|bytes| bytes as u64))
    }

    fn read(&mut self, name: String, offset: u64, length: u64) -> wasmtime::Result<Vec<u8>> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(MAX_ASSET_CHUNK_BYTES);
        match self.assets()?.read_asset(&name, offset, length) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("there is no such asset"),
            Err(error) => bail!("the artifact cannot be read: {error}"),
        }
    }

    fn parameter(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        let parameters: &BTreeMap<_, _> = &self.assets()?.descriptor().parameters;
        Ok(parameters.get(&name).cloned())
    }
}

impl log::Host for HostState {
    fn write(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        let end = message.floor_char_boundary(MAX_LOG_LINE_BYTES);
        let Some(left) = self.log_bytes_left.checked_sub(end.max(1)) else {
            self.log_lines_dropped += 1;
            return Ok(());
        };
        self.log_bytes_left = left;
        let (version, line) = (&self.version, &message[..end]);
        match level {
            Level::Debug => tracing::debug!(target: "guest", %version, "{line}"),
            Level::Info => tracing::info!(target: "guest", %version, "{line}"),
            Level::Warn => tracing::warn!(target: "guest", %version, "{line}"),
            Level::Error => tracing::error!(target: "guest", %version, "{line}"),
        }
        Ok(())
    }
}

/// Limits the memory and the tables of an instance, and records whether memory was denied.
struct MemoryLimit {
    max_bytes: usize,
    max_table_elements: usize,
    bytes: usize,
    denied: bool,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // The pool allows one memory per instance.
        let allowed = desired <= self.max_bytes;
        if allowed {
            self.bytes = desired;
        }
        self.denied |= !allowed;
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.max_table_elements)
    }
}
