//! `[models.NAME]`: what holds for single models.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use semver::Version;
use serde::Deserialize;

use super::{LONGEST, Sticky, schema};
use guesthouse_control::rate::Rate;
use guesthouse_control::rollout::{Share, WHOLE};
use guesthouse_runtime::guest::{Backend, InstanceLimits};
use guesthouse_runtime::pool::{Isolation, ReuseLimits};
use guesthouse_runtime::version::{Batching, ModelLimits};

/// What holds for one model. Limits that are left out are those of `[limits]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// The shares of versions in the requests that select no version: integers are parts per million,
    /// strings have a unit (`"90%"`). They add up to the whole. A split takes effect when it changes;
    /// later changes by operators hold until it changes again.
    #[schemars(schema_with = "schema::split")]
    pub split: Option<BTreeMap<Version, Share>>,
    /// The request header whose value keeps a caller on a version while shares grow.
    pub sticky_header: Option<String>,
    /// The field of the request body with the same effect, beside the inputs or one of them. The header
    /// takes precedence.
    pub sticky_field: Option<String>,
    /// How many replaced versions stay loaded, so that a rollback takes milliseconds.
    pub parked_versions: Option<usize>,
    /// How many predictions all keys together may request of the model.
    #[schemars(with = "Option<schema::Rate>")]
    pub rate: Option<Rate>,
    /// Whether inputs and outputs are kept where a shadow disagrees.
    pub shadow_capture: Option<bool>,
    /// The share of the model's requests that are written to the capture files, from 0 to 1.
    pub capture_share: Option<f64>,
    /// How strictly requests are isolated from each other: `"fresh"` makes a new instance for every
    /// batch, `{ reuse = { … } }` reuses an instance until it reaches a limit.
    #[schemars(schema_with = "isolation_schema")]
    pub isolation: Option<IsolationValue>,
    /// The deadline of a request that sets none.
    pub predict_milliseconds: Option<u64>,
    /// The linear memory of an instance, from 1 to 4096.
    pub instance_memory_mib: Option<usize>,
    /// The elements of all tables of an instance, from 1 to 100000.
    pub table_elements: Option<usize>,
    /// The size of all outputs of one call, from 1 to 4096.
    pub output_mib: Option<usize>,
    /// The text that one call may log, from 1 to 4096.
    pub log_kib: Option<usize>,
    /// The call stack of an instance, from 1 to 4096. Deeper calls trap.
    pub stack_kib: Option<usize>,
    /// The instances of one version, which is also how many of its batches run at the same time. At
    /// most `limits.threads_per_version`.
    pub instances: Option<usize>,
    /// Whether outputs may be NaN or infinite (`null` in JSON). Otherwise such an output is a fault.
    pub accept_non_finite: Option<bool>,
    /// Whether the host executes operations of neural networks for the model's guests. `false` for a
    /// model that is not trusted: a fault in the operations would be one of the host. Guests without
    /// them compute the same, and take longer.
    pub arithmetic: Option<bool>,
    /// How rows of several requests share one call of the guest. Batching has no effect with isolation
    /// `"fresh"`.
    #[serde(default)]
    pub batching: BatchingSection,
}

/// How rows of several requests share one call of the guest.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchingSection {
    /// Whether requests share calls at all.
    pub enabled: Option<bool>,
    /// The most rows of one call. The signature's own limit holds as well.
    pub max_batch_size: Option<u32>,
    /// How long a request may be held back so that others join it, at most 1000000.
    pub max_queue_delay_microseconds: Option<u64>,
}

/// How strictly requests of a model are isolated from each other.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationValue {
    /// A new instance for every batch.
    Fresh,
    /// An instance is reused until it reaches a limit.
    Reuse(ReuseSection),
}

/// When a reused instance is replaced.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReuseSection {
    /// The batches that an instance serves.
    pub max_batches: Option<u32>,
    /// By how much its linear memory may grow.
    pub max_memory_growth_mib: Option<usize>,
    /// How long it lives.
    pub max_age_seconds: Option<u64>,
}

/// The longest that a request may be held back for others. 1 s is far more than any batch is worth.
const LONGEST_QUEUE_DELAY: Duration = Duration::from_secs(1);

/// A key whose value is invalid, and why.
pub(super) type InvalidKey = (&'static str, &'static str);

impl ModelSection {
    /// What keeps a caller on a version.
    pub(super) fn validate_sticky(&self) -> Result<Sticky, InvalidKey> {
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
    pub(super) fn validate_split(&self) -> Result<Option<BTreeMap<Version, u32>>, String> {
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

    /// The limits of the model's versions, whose arithmetic this backend executes.
    pub(super) fn validate(
        &self,
        general: &ModelLimits,
        backend: Backend,
    ) -> Result<ModelLimits, InvalidKey> {
        let mut limits = *general;
        if let Some(isolation) = &self.isolation {
            limits.isolation = isolation.validate()?;
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
        if let Some(granted) = self.arithmetic {
            instance.arithmetic = granted.then_some(backend);
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
            // The pool and the threads are sized for `threads_per_version`.
            Some(instances) if (1..=general.concurrency).contains(&instances) => {
                limits.concurrency = instances;
            }
            Some(_) => return Err(("instances", "it must be between 1 and `threads_per_version`")),
        }
        limits.batching = self.batching.validate()?;
        Ok(limits)
    }
}

impl BatchingSection {
    fn validate(&self) -> Result<Batching, InvalidKey> {
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

impl IsolationValue {
    fn validate(&self) -> Result<Isolation, InvalidKey> {
        let Self::Reuse(reuse) = self else { return Ok(Isolation::Fresh) };
        let default = ReuseLimits::default();
        let growth = reuse.max_memory_growth_mib.map(|mib| mib.saturating_mul(1 << 20));
        let limits = ReuseLimits {
            max_batches: reuse.max_batches.unwrap_or(default.max_batches),
            max_memory_growth: growth.unwrap_or(default.max_memory_growth),
            max_age: reuse.max_age_seconds.map_or(default.max_age, Duration::from_secs),
        };
        if limits.max_batches == 0 {
            return Err(("isolation.reuse.max_batches", "it must be at least 1"));
        }
        Ok(Isolation::Reuse(limits))
    }
}

/// The schema of [`IsolationValue`].
fn isolation_schema(generator: &mut SchemaGenerator) -> Schema {
    let reuse = generator.subschema_for::<ReuseSection>();
    json_schema!({"anyOf": [
        {"type": "string", "enum": ["fresh"]},
        {"type": "object", "properties": {"reuse": reuse}},
    ]})
}
