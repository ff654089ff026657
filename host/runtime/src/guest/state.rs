//! What the host keeps for one instance, and what the guest's own imports do with it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{ResourceLimiter, bail};
use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use super::bindings::guesthouse::model::log::Level;
use super::bindings::guesthouse::model::{assets, log, types};
use super::limits::InstanceLimits;
use super::stop::{Stop, StopReason};
use guesthouse_artifact::Artifact;
use guesthouse_model::VersionId;

/// The longest line a guest may log, in bytes; the contract's own limit.
const MAX_LOG_LINE_BYTES: usize = 4 << 10;

/// The most an asset is read at once, in bytes; the contract's own limit.
const MAX_ASSET_CHUNK_BYTES: usize = 8 << 20;

/// Streams and the like that a guest may hold: memory of the host, outside of its own limit.
const MAX_RESOURCES: usize = 1000;

/// What the guest's random numbers repeat: guests are deterministic, and a snapshot must be the
/// same each time it is made.
const RANDOM_BYTES: &[u8] = b"guests of a house are given the same dice every night";

/// What the host keeps for one instance.
pub(crate) struct HostState {
    wasi: WasiCtx,
    table: ResourceTable,
    version: Arc<VersionId>,
    /// What `init` may read, while it runs.
    assets: Option<Arc<Artifact>>,
    memory: MemoryLimit,
    stop: Option<Stop>,
    log_bytes: usize,
    log_bytes_left: usize,
    log_lines_dropped: u64,
}

impl HostState {
    /// State for an instance that serves, or with assets for one that runs `init`.
    pub(crate) fn new(
        version: Arc<VersionId>,
        limits: &InstanceLimits,
        assets: Option<Arc<Artifact>>,
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
            log_bytes: limits.log_bytes,
            log_bytes_left: limits.log_bytes,
            log_lines_dropped: 0,
        }
    }

    /// `init` is over.
    pub(crate) fn forget_assets(&mut self) {
        self.assets = None;
    }

    /// The budgets of one call begin anew.
    pub(crate) fn begin_call(&mut self, stop: &Stop) {
        self.stop = Some(stop.clone());
        self.log_bytes_left = self.log_bytes;
        self.log_lines_dropped = 0;
        self.memory.denied = false;
    }

    /// Say once how much of the log was dropped.
    pub(crate) fn end_call(&self) {
        if self.log_lines_dropped > 0 {
            let (version, lines) = (&self.version, self.log_lines_dropped);
            tracing::warn!(target: "guest", %version, lines, "dropped lines over the log budget");
        }
    }

    /// Whether and why the running call must end.
    pub(crate) fn stop_reason(&self) -> Option<StopReason> {
        self.stop.as_ref()?.reason(Instant::now())
    }

    /// The instance's linear memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory.bytes
    }

    /// Whether the guest was refused memory since the call began.
    pub(crate) fn memory_was_denied(&self) -> bool {
        self.memory.denied
    }

    pub(crate) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.memory
    }

    fn assets(&self) -> wasmtime::Result<&Artifact> {
        match &self.assets {
            Some(assets) => Ok(assets),
            None => bail!("assets can be read during `init` only"),
        }
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Time stands still for guests: the same input must give the same output, whenever it comes.
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

/// The memory and tables that one instance may have; remembers that it said no.
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
        // A guest has one memory; wasmtime's pool sees to that.
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
