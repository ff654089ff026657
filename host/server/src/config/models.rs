//! What the file says of single models.

use std::collections::BTreeMap;
use std::time::Duration;

use semver::Version;
use serde::Deserialize;

use super::{LONGEST, Sticky};
use guesthouse_control::rate::Rate;
use guesthouse_control::rollout::{Share, WHOLE};
use guesthouse_runtime::guest::InstanceLimits;
use guesthouse_runtime::pool::{Isolation, ReuseLimits};
use guesthouse_runtime::version::{Batching, ModelLimits};

/// What holds for one model; limits that are left out are those of all models.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Shares of the traffic that asks for no version, by version: integers are parts per million,
    /// texts have a unit.
    pub split: Option<BTreeMap<Version, Share>>,
    /// The header whose value keeps a caller with a version.
    pub sticky_header: Option<String>,
    /// The field of the body whose value keeps a caller with a version.
    pub sticky_field: Option<String>,
    /// How many replaced versions stay loaded; 2.
    pub parked_versions: Option<usize>,
    /// How often all keys together may ask for predictions; as often as they like.
    pub rate: Option<Rate>,
    /// Whether inputs and outputs are kept where a shadow disagrees.
    pub shadow_capture: Option<bool>,
    /// The share of requests that are written down with their answers; 0.
    pub capture_share: Option<f64>,
    /// `"fresh"`, or `{ reuse = { … } }`.
    pub isolation: Option<IsolationFile>,
    /// How long a request may wait and run, if it does not say itself.
    pub predict_milliseconds: Option<u64>,
    /// Linear memory of an instance.
    pub instance_memory_mib: Option<usize>,
    /// Table elements of an instance.
    pub table_elements: Option<usize>,
    /// What one call may return.
    pub output_mib: Option<usize>,
    /// What one call may log.
    pub log_kib: Option<usize>,
    /// Call stack of an instance.
    pub stack_kib: Option<usize>,
    /// Instances of one version, which is how many of its batches may run at once.
    pub instances: Option<usize>,
    /// Whether an output may be NaN or infinite.
    pub accept_non_finite: Option<bool>,
    /// How rows of several requests are run together.
    #[serde(default)]
    pub batching: BatchingFile,
}

/// How rows of several requests are run together; what is left out is as in [`Batching`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented at `Batching`")]
pub struct BatchingFile {
    pub enabled: Option<bool>,
    pub max_batch_size: Option<u32>,
    pub max_queue_delay_microseconds: Option<u64>,
}

/// The longest that a request may be held back for others. 1 s is far more than any batch is worth.
const LONGEST_QUEUE_DELAY: Duration = Duration::from_secs(1);

/// How strictly requests of a model are kept apart.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationFile {
    /// A new instance for every batch.
    Fresh,
    /// An instance serves until a limit is reached.
    Reuse(ReuseFile),
}

/// The limits of a reused instance; those left out have the defaults of [`ReuseLimits`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented at `ReuseLimits`")]
pub struct ReuseFile {
    pub max_batches: Option<u32>,
    pub max_memory_growth_mib: Option<usize>,
    pub max_age_seconds: Option<u64>,
}

/// A key that makes no sense, and why.
pub(super) type Wrong = (&'static str, &'static str);

impl ModelFile {
    /// How callers of the model are told apart.
    pub(super) fn settle_sticky(&self) -> Result<Sticky, Wrong> {
        let is_word = |name: &str, others: &[u8]| {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
            !name.is_empty() && name.bytes().all(good)
        };
        let (header, field) = (self.sticky_header.clone(), self.sticky_field.clone());
        if header.as_deref().is_some_and(|name| !is_word(name, b"-_")) {
            return Err(("sticky_header", "a header is letters, digits, `-` and `_`"));
        }
        if field
            .as_deref()
            .is_some_and(|name| !is_word(name, b"_") || ["request_id", "instances"].contains(&name))
        {
            return Err((
                "sticky_field",
                "a field is letters, digits and `_`, and none that has another meaning",
            ));
        }
        Ok(Sticky { header, field })
    }

    /// The split in parts per million, if there is one.
    pub(super) fn settle_split(&self) -> Result<Option<BTreeMap<Version, u32>>, String> {
        let Some(shares) = &self.split else { return Ok(None) };
        let parts = shares.iter().map(|(version, share)| (version.clone(), share.parts()));
        let parts: BTreeMap<_, _> = parts.collect();
        match parts.values().map(|parts| u64::from(*parts)).sum::<u64>() {
            sum if sum == u64::from(WHOLE) => Ok(Some(parts)),
            100 => Err(format!(
                "integers are parts per million, and these add up to 100 of {WHOLE}: write \
                 percentages as texts, such as \"90%\""
            )),
            sum => Err(format!("its parts per million must add up to {WHOLE}, and not {sum}")),
        }
    }

    /// What versions of the model may use.
    pub(super) fn settle(&self, general: &ModelLimits) -> Result<ModelLimits, Wrong> {
        let mut limits = *general;
        if let Some(isolation) = &self.isolation {
            limits.isolation = isolation.settle()?;
        }
        if let Some(milliseconds) = self.predict_milliseconds {
            limits.predict_time = Duration::from_millis(milliseconds);
        }
        if limits.predict_time.is_zero() || limits.predict_time > LONGEST {
            return Err(("predict_milliseconds", "it must be at least 1 and at most a year"));
        }
        let instance = &mut limits.instance;
        for (key, value, unit, limit) in [
            ("instance_memory_mib", self.instance_memory_mib, 1 << 20, &mut instance.memory_bytes),
            ("output_mib", self.output_mib, 1 << 20, &mut instance.transfer_bytes),
            ("log_kib", self.log_kib, 1 << 10, &mut instance.log_bytes),
            ("stack_kib", self.stack_kib, 1 << 10, &mut instance.stack_bytes),
        ] {
            match value {
                None => {}
                Some(value @ 1..=4096) => *limit = value * unit,
                Some(_) => return Err((key, "it must be between 1 and 4096")),
            }
        }
        if let Some(accepted) = self.accept_non_finite {
            instance.accept_non_finite = accepted;
        }
        match self.table_elements {
            None => {}
            Some(elements)
                if (1..=InstanceLimits::default().table_elements).contains(&elements) =>
            {
                instance.table_elements = elements;
            }
            Some(_) => return Err(("table_elements", "it must be between 1 and 100000")),
        }
        match self.instances {
            None => {}
            // The pool and the threads are sized by the server's own share for a version.
            Some(instances) if (1..=general.concurrency).contains(&instances) => {
                limits.concurrency = instances;
            }
            Some(_) => return Err(("instances", "it must be between 1 and `threads_per_version`")),
        }
        limits.batching = self.batching.settle()?;
        Ok(limits)
    }
}

impl BatchingFile {
    fn settle(&self) -> Result<Batching, Wrong> {
        let default = Batching::default();
        let delay = self.max_queue_delay_microseconds.map(Duration::from_micros);
        let batching = Batching {
            is_enabled: self.enabled.unwrap_or(default.is_enabled),
            max_batch_size: self.max_batch_size.unwrap_or(default.max_batch_size),
            max_queue_delay: delay.unwrap_or(default.max_queue_delay),
        };
        if batching.max_batch_size == 0 {
            return Err(("batching.max_batch_size", "it must be at least 1"));
        }
        if batching.max_queue_delay > LONGEST_QUEUE_DELAY {
            return Err(("batching.max_queue_delay_microseconds", "it must be at most a second"));
        }
        Ok(batching)
    }
}

impl IsolationFile {
    fn settle(&self) -> Result<Isolation, Wrong> {
        let Self::Reuse(file) = self else { return Ok(Isolation::Fresh) };
        let default = ReuseLimits::default();
        let growth = file.max_memory_growth_mib.map(|mib| mib.saturating_mul(1 << 20));
        let limits = ReuseLimits {
            max_batches: file.max_batches.unwrap_or(default.max_batches),
            max_memory_growth: growth.unwrap_or(default.max_memory_growth),
            max_age: file.max_age_seconds.map_or(default.max_age, Duration::from_secs),
        };
        if limits.max_batches == 0 {
            return Err(("isolation.reuse.max_batches", "it must be at least 1"));
        }
        Ok(Isolation::Reuse(limits))
    }
}
