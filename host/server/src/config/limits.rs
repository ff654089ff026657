//! The bounds of a server: what the file says of them, and what they come to.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, bounded, out_of_range, positive};
use guesthouse_runtime::guest::{DEFAULT_START_TIME, EngineLimits, InstanceLimits};
use guesthouse_runtime::inference::InferenceLimits;
use guesthouse_runtime::machine;
use guesthouse_runtime::pool::{Isolation, ReuseLimits};
use guesthouse_runtime::preinit::{ChildPriority, PreinitLimits};
use guesthouse_runtime::version::{Batching, ModelLimits};

/// The limits of the file; those left out have the defaults of [`Limits`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented at `Limits`")]
pub struct LimitsFile {
    pub body_bytes: Option<usize>,
    pub bodies_in_flight_bytes: Option<usize>,
    pub batch_rows: Option<usize>,
    pub body_seconds: Option<u64>,
    pub connections: Option<usize>,
    pub head_seconds: Option<u64>,
    pub idle_seconds: Option<u64>,
    pub predict_milliseconds: Option<u64>,
    pub drain_seconds: Option<u64>,
    pub linger_seconds: Option<u64>,
    pub repository_seconds: Option<u64>,
    pub predict_milliseconds_at_most: Option<u64>,
    pub threads_per_version: Option<usize>,
    pub inference_threads: Option<usize>,
    pub queued_batches: Option<usize>,
    pub instances: Option<u32>,
    pub instance_memory_mib: Option<usize>,
    pub memory_mib: Option<u64>,
    pub preinit_cpu_seconds: Option<u64>,
    pub preinit_memory_mib: Option<u64>,
    pub preinit_priority: Option<ChildPriority>,
    pub start_seconds: Option<u64>,
    pub traffic_log_seconds: Option<u64>,
}

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest body of a request, in bytes. 8 MiB hold 1024 texts of 2000 four-byte
    /// characters.
    pub body_bytes: usize,
    /// The bytes of all bodies that are being read or answered. 256 MiB are 32 of the largest, or
    /// more small ones than can wait for a thread; one of the largest, if that is more.
    pub bodies_in_flight_bytes: usize,
    /// The most rows of a batch request. 1024 rows keep an answer well under a second for small
    /// models.
    pub batch_rows: usize,
    /// How long a caller may take to send a body, or may leave an answer lying in its connection.
    /// 30 s carry 8 MiB over 2 Mbit/s.
    pub body_time: Duration,
    /// Connections at the same time. 8192 are more than any caller of a small model needs; each
    /// costs a file and some ten kilobytes.
    pub connections: usize,
    /// How long a connection may take to send the head of a request, from its start or from the first
    /// byte of a later request. 10 s are many round trips, and shorter than anybody is patient.
    pub head_time: Duration,
    /// How long a connection on which there was a request is kept alive until the next one. 75 s are
    /// more than the 60 s that the usual load balancers keep theirs: whoever closes first must not be
    /// the server, because a request may be on its way. Where the limit of connections is reached, it
    /// is `head_time`.
    pub idle_time: Duration,
    /// The longest that a request may wait and run, whatever it or its model asks for. 30 s: a
    /// caller that waits longer should be a batch job.
    pub max_predict_time: Duration,
    /// How long a server that was told to stop goes on serving while it says that it is not ready,
    /// so that nobody is sent to it any more when it closes. 3 s are a probe or two of a balancer;
    /// whoever stops it by hand (SIGINT) does not wait for that.
    pub linger_time: Duration,
    /// How long a stopping server waits for requests under way, before it interrupts them.
    pub drain_time: Duration,
    /// How often the repository folder is looked at; never, if none.
    pub repository_interval: Option<Duration>,
    /// The inference threads. One version uses as many as there are cores (or the quota of the
    /// process's control groups is worth), because guests never wait; four times as many exist, so that versions that compute for ever leave some to others.
    /// 256 batches of 1 ms wait for each version: on two cores an eighth of a second, and more
    /// would only be late.
    pub inference: InferenceLimits,
    /// The engine's own limits. By default 32 versions fit with all of their instances.
    pub engine: EngineLimits,
    /// What all loaded versions may come to use, in bytes: their instances' limits, added up. The
    /// memory of the machine or of the process's control groups by default.
    pub memory_bytes: u64,
    /// What versions of a model may use of which the file says nothing. 2 s for a request are
    /// longer than any small model takes and shorter than people wait.
    pub model: ModelLimits,
    /// What the child process that pre-initialises a version may use.
    pub preinit: PreinitLimits,
    /// How often the traffic counters are logged, if they have changed.
    pub traffic_log_interval: Duration,
}

impl LimitsFile {
    fn settle_preinit(
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
            // Idle priority on a busy machine: it may get a small fraction of one core.
            wall_time: cpu_time * 15,
            memory_bytes: memory_mib.saturating_mul(MIB),
            // Nobody who is served should notice a deploy.
            priority: self.preinit_priority.unwrap_or(ChildPriority::Idle),
            guest_memory_bytes: instance_memory_mib << 20,
            ..PreinitLimits::default()
        })
    }

    pub(super) fn settle(&self) -> Result<Limits, ConfigError> {
        let cores = machine::cores();
        let seconds = |name, value: Option<u64>, default| {
            bounded(&format!("limits.{name}"), Duration::from_secs(positive(name, value, default)?))
        };
        let milliseconds = |name, value: Option<u64>, default| {
            let time = Duration::from_millis(positive(name, value, default)?);
            bounded(&format!("limits.{name}"), time)
        };
        // Of these, none at all makes sense, too.
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
            preinit: self.settle_preinit(memory_mib, start_time)?,
            traffic_log_interval: seconds("traffic_log_seconds", self.traffic_log_seconds, 30)?,
        })
    }
}

const MIB: u64 = 1 << 20;
