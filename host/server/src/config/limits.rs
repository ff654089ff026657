//! `[limits]`: the bounds of a server, as written in the file and as validated.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConfigError, bounded, out_of_range, positive};
use guesthouse_runtime::guest::{DEFAULT_START_TIME, EngineLimits, InstanceLimits};
use guesthouse_runtime::inference::InferenceLimits;
use guesthouse_runtime::machine;
use guesthouse_runtime::pool::{Isolation, ReuseLimits};
use guesthouse_runtime::preinit::{ChildPriority, PreinitLimits};
use guesthouse_runtime::version::{Batching, ModelLimits};

/// The bounds of the server. Each has a default; a value of 0 is an error unless it says otherwise.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsSection {
    /// The largest body of a request, also after decompression. 8 MiB hold 1024 texts of 2000
    /// four-byte characters.
    pub body_bytes: Option<usize>,
    /// The bytes of all request bodies that are being read or answered at the same time. The next
    /// request is rejected with 503. At least `body_bytes`, and less than 4 GiB. 256 MiB are 32 of the
    /// largest bodies, or more small ones than can wait for a thread.
    pub bodies_in_flight_bytes: Option<usize>,
    /// The most rows in a batch request. 1024 rows of a small model take well under a second.
    pub batch_rows: Option<usize>,
    /// How long a client may take to send a body, and how long it may leave a response untouched.
    /// 30 s carry 8 MiB over 2 Mbit/s.
    pub body_seconds: Option<u64>,
    /// Open connections per listener. Each costs a file descriptor and some ten kilobytes. Clients over
    /// the limit wait in the kernel's accept queue.
    pub connections: Option<usize>,
    /// How long a connection may take for the TLS handshake, and for the head of a request, counted
    /// from the start of the connection or from the first byte of a later request.
    pub head_seconds: Option<u64>,
    /// How long a kept-alive connection may be idle between two requests. The default is longer than
    /// the 60 s of common load balancers, because the side that closes first may lose a request that is
    /// on its way. When the limit of connections is reached, connections idle for `head_seconds` are
    /// evicted.
    pub idle_seconds: Option<u64>,
    /// The deadline of a request that sets none: its time in the queue and in the guest.
    pub predict_milliseconds: Option<u64>,
    /// The longest deadline that a request or a model may set. A client that would wait longer should
    /// be a batch job.
    pub predict_milliseconds_at_most: Option<u64>,
    /// How long a server that received SIGTERM keeps serving while `/readyz` reports that it is not
    /// ready, so that load balancers notice. May be 0.
    pub linger_seconds: Option<u64>,
    /// How long a stopping server waits for requests in progress before it interrupts them.
    pub drain_seconds: Option<u64>,
    /// The interval at which the repository folder is scanned. 0: only at the start.
    pub repository_seconds: Option<u64>,
    /// The batches of one version that run at the same time.
    pub threads_per_version: Option<usize>,
    /// The inference threads of the server. The default leaves threads for other versions while one
    /// version keeps all of its own busy.
    pub inference_threads: Option<usize>,
    /// The batches of one version that wait for a thread. The next one is rejected with 503.
    pub queued_batches: Option<usize>,
    /// The instances of all versions together. The default fits 32 versions with all of their
    /// instances.
    pub instances: Option<u32>,
    /// The linear memory of an instance. At most 4096.
    pub instance_memory_mib: Option<usize>,
    /// The memory that all loaded versions together may use, computed from the limits of their
    /// instances. A version that does not fit is not loaded.
    pub memory_mib: Option<u64>,
    /// The CPU time of the child process that runs `init` and compiles a version.
    pub preinit_cpu_seconds: Option<u64>,
    /// The memory of that child process for a large artifact. The child processes of small artifacts
    /// share the same amount again.
    pub preinit_memory_mib: Option<u64>,
    /// The scheduling priority of that child process: `idle` uses only time that nothing else wants,
    /// `low` also makes progress on a machine that is always busy.
    #[schemars(schema_with = "super::schema::priority")]
    pub preinit_priority: Option<ChildPriority>,
    /// How long `start` functions of a guest may run: CPU time in the child process, wall time in each
    /// instance.
    pub start_seconds: Option<u64>,
    /// The interval at which the traffic counters are logged, if they have changed.
    pub traffic_log_seconds: Option<u64>,
}

/// The bounds of a server, validated. The reasons for the defaults stand at [`LimitsSection`].
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest body of a request, in bytes.
    pub body_bytes: usize,
    /// The bytes of all request bodies that are being read or answered.
    pub bodies_in_flight_bytes: usize,
    /// The most rows in a batch request.
    pub batch_rows: usize,
    /// How long a client may take to send a body, and may leave a response untouched.
    pub body_time: Duration,
    /// Open connections per listener.
    pub connections: usize,
    /// How long a connection may take for the TLS handshake and for the head of a request.
    pub head_time: Duration,
    /// How long a kept-alive connection may be idle; `head_time` when `connections` is reached.
    pub idle_time: Duration,
    /// The longest deadline of any request.
    pub max_predict_time: Duration,
    /// How long a server that received SIGTERM keeps serving while it is not ready. SIGINT skips this.
    pub linger_time: Duration,
    /// How long a stopping server waits for requests in progress.
    pub drain_time: Duration,
    /// The interval at which the repository folder is scanned; `None` if only at the start.
    pub repository_interval: Option<Duration>,
    /// The inference threads and the length of their queues. One version uses one thread per core (or
    /// as many as the CPU quota of the process's control groups is worth), because guests never block.
    /// 256 queued batches of 1 ms are an eighth of a second on two cores; more would miss deadlines.
    pub inference: InferenceLimits,
    /// The limits of the WebAssembly engine.
    pub engine: EngineLimits,
    /// The memory of all loaded versions, in bytes.
    pub memory_bytes: u64,
    /// The limits of models for which the file sets none. 2 s for a request are longer than any small
    /// model takes and shorter than people wait.
    pub model: ModelLimits,
    /// The limits of the child process that pre-initialises a version.
    pub preinit: PreinitLimits,
    /// The interval at which changed traffic counters are logged.
    pub traffic_log_interval: Duration,
}

impl LimitsSection {
    fn validate_preinit(
        &self,
        instance_memory_mib: usize,
        start_time: Duration,
    ) -> Result<PreinitLimits, ConfigError> {
        let memory_mib = positive("preinit_memory_mib", self.preinit_memory_mib, 6144)?;
        let seconds = positive("preinit_cpu_seconds", self.preinit_cpu_seconds, 240)?;
        let cpu_time = bounded("limits.preinit_cpu_seconds", Duration::from_secs(seconds))?;
        Ok(PreinitLimits {
            cpu_time,
            start_time,
            // At idle priority on a busy machine it may get a small fraction of one core.
            wall_time: cpu_time * 15,
            memory_bytes: memory_mib.saturating_mul(MIB),
            // A deployment must not slow down requests.
            priority: self.preinit_priority.unwrap_or(ChildPriority::Idle),
            guest_memory_bytes: instance_memory_mib << 20,
            ..PreinitLimits::default()
        })
    }

    pub(super) fn validate(&self) -> Result<Limits, ConfigError> {
        let cores = machine::cores();
        let seconds = |name, value: Option<u64>, default| {
            bounded(&format!("limits.{name}"), Duration::from_secs(positive(name, value, default)?))
        };
        let milliseconds = |name, value: Option<u64>, default| {
            let time = Duration::from_millis(positive(name, value, default)?);
            bounded(&format!("limits.{name}"), time)
        };
        // For these, 0 has a meaning.
        let from_zero = |name, value: Option<u64>, default| {
            bounded(&format!("limits.{name}"), Duration::from_secs(value.unwrap_or(default)))
        };
        let repository_interval = from_zero("repository_seconds", self.repository_seconds, 5)?;
        let per_version = positive("threads_per_version", self.threads_per_version, cores)?;
        let threads = positive("inference_threads", self.inference_threads, 4 * per_version)?;
        let memory_mib = positive("instance_memory_mib", self.instance_memory_mib, 256)?;
        if memory_mib > 4096 {
            return Err(out_of_range("instance_memory_mib", "WebAssembly memory ends at 4096"));
        }
        let instances = u32::try_from(threads + 32 * per_version).unwrap_or(u32::MAX);
        let start_time =
            seconds("start_seconds", self.start_seconds, DEFAULT_START_TIME.as_secs())?;
        let instance =
            InstanceLimits { memory_bytes: memory_mib << 20, start_time, ..Default::default() };
        let predict_time = milliseconds("predict_milliseconds", self.predict_milliseconds, 2000)?;
        let body_bytes = positive("body_bytes", self.body_bytes, 8 << 20)?;
        let in_flight = positive(
            "bodies_in_flight_bytes",
            self.bodies_in_flight_bytes,
            body_bytes.max(256 << 20),
        )?;
        if !(body_bytes..=u32::MAX as usize).contains(&in_flight) {
            let reason = "it must be at least `body_bytes` and less than 4 GiB";
            return Err(out_of_range("bodies_in_flight_bytes", reason));
        }
        let queued = positive("queued_batches", self.queued_batches, 256)?;
        Ok(Limits {
            body_bytes,
            bodies_in_flight_bytes: in_flight,
            batch_rows: positive("batch_rows", self.batch_rows, 1024)?,
            body_time: seconds("body_seconds", self.body_seconds, 30)?,
            connections: positive("connections", self.connections, 8192)?,
            head_time: seconds("head_seconds", self.head_seconds, 10)?,
            idle_time: seconds("idle_seconds", self.idle_seconds, 75)?,
            max_predict_time: milliseconds(
                "predict_milliseconds_at_most",
                self.predict_milliseconds_at_most,
                30_000,
            )?,
            linger_time: from_zero("linger_seconds", self.linger_seconds, 3)?,
            drain_time: seconds("drain_seconds", self.drain_seconds, 10)?,
            repository_interval: Some(repository_interval).filter(|interval| !interval.is_zero()),
            inference: InferenceLimits { threads, queued_per_version: queued },
            engine: EngineLimits {
                max_instances: positive("instances", self.instances, instances)?,
                max_memory_bytes: memory_mib << 20,
                use_idle_cores: true,
            },
            memory_bytes: positive("memory_mib", self.memory_mib, machine::memory_mib())?
                .saturating_mul(MIB),
            model: ModelLimits {
                instance,
                isolation: Isolation::Reuse(ReuseLimits::default()),
                concurrency: per_version,
                queued,
                predict_time,
                batching: Batching::default(),
            },
            preinit: self.validate_preinit(memory_mib, start_time)?,
            traffic_log_interval: seconds("traffic_log_seconds", self.traffic_log_seconds, 30)?,
        })
    }
}

const MIB: u64 = 1 << 20;
