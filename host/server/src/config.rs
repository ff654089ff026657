//! The configuration: what the operator wrote, and its validated form.
//!
//! [`ConfigFile`] is the TOML file (strict: an unknown key is an error), with the environment and the
//! command line over it. [`Settings`] is what the server does: validated, with every default filled in.
//! The documentation of the file's keys is generated from the comments in this module
//! ([`reference`](reference())).

mod arithmetic;
mod idempotency;
mod keys;
mod limits;
mod listen;
mod metrics;
mod models;
mod observe;
mod overrides;
mod reference;
mod schema;
mod server;
mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use semver::Version;
use serde::Deserialize;

pub use arithmetic::{ArithmeticSection, ArithmeticSettings, BackendChoice};
pub use idempotency::{AnswerLimits, IdempotencySection};
pub use keys::{KeySection, RateLimitSection};
pub use limits::{Limits, LimitsSection};
pub use listen::{GrpcListen, ListenAddress, ListenAddressError};
pub use metrics::{MetricsAccess, MetricsListener, MetricsSection};
pub use models::{BatchingSection, IsolationValue, ModelSection, ReuseSection};
pub use observe::{CaptureSection, TracingSection};
pub use overrides::Override;
pub use reference::reference;
pub use server::{ServerIdentity, ServerSection};
pub use transport::{CorsSection, Origins, ProxySection, TlsSection, TrustedProxies};

use crate::observe::capture::CaptureSettings;
use crate::observe::trace::TraceSettings;
use guesthouse_control::keys::Key;
use guesthouse_control::ledger::OnLoss;
use guesthouse_control::rate::Rate;
use guesthouse_model::ModelName;
use guesthouse_runtime::version::ModelLimits;

/// The configuration file, as it is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The address or host name, and the port, of the public HTTP listener.
    pub listen: Option<ListenAddress>,
    /// The address or host name, and the port, of the gRPC listener, or `"off"`.
    pub grpc_listen: Option<GrpcListen>,
    /// The address or host name, and the port, of the admin API. Without a key with the scope `admin`,
    /// it is not opened.
    pub admin_listen: Option<ListenAddress>,
    /// The folder of artifacts that the server loads by itself.
    pub repository: Option<PathBuf>,
    /// The folder of the ledger, deployed artifacts and compiled versions. Never shared by two servers.
    pub state: Option<PathBuf>,
    /// The model of requests whose path names none, such as `/v1/predict`.
    #[schemars(with = "Option<String>")]
    pub default_model: Option<ModelName>,
    /// How the server presents itself to clients of the Open Inference Protocol.
    #[serde(default)]
    pub server: ServerSection,
    /// The certificate of all listeners. Without this section they serve plain HTTP.
    pub tls: Option<TlsSection>,
    /// Cross-origin requests of web pages to the public listener. None are allowed by default, because
    /// any page could then reach the server through the network of its visitor.
    #[serde(default)]
    pub cors: CorsSection,
    /// The reverse proxies in front of the server.
    #[serde(default)]
    pub proxy: ProxySection,
    /// The bounds of the server. Each has a default; a value of 0 is an error unless it says otherwise.
    #[serde(default)]
    pub limits: LimitsSection,
    /// An API key, identified by its SHA-256 (`printf %s "$KEY" | sha256sum`). At most 1000, beside
    /// those made with `guesthouse keys create`.
    #[serde(default)]
    pub keys: Vec<KeySection>,
    /// How many predictions a key may request that has no `rate` of its own.
    #[serde(default)]
    pub rate_limit: RateLimitSection,
    /// How long responses to predictions with an idempotency key are kept, and how many.
    #[serde(default)]
    pub idempotency: IdempotencySection,
    /// Which listener serves `/metrics`, and whether it needs a key.
    #[serde(default)]
    pub metrics: MetricsSection,
    /// OpenTelemetry traces. They are off without an `endpoint`.
    #[serde(default)]
    pub tracing: TracingSection,
    /// Where sampled requests and their responses are written. A model's `capture_share` selects them.
    #[serde(default)]
    pub capture: CaptureSection,
    /// The operations of neural networks that the host executes for guests which import them.
    #[serde(default)]
    pub arithmetic: ArithmeticSection,
    /// What holds for one model. Limits that are left out are those of `[limits]`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, ModelSection>")]
    pub models: BTreeMap<ModelName, ModelSection>,
}

/// The validated configuration, with every default filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The public HTTP listener. By default only this machine can reach it.
    pub listen: ListenAddress,
    /// The gRPC listener. By default only this machine can reach it, at the port that the examples of
    /// other model servers use.
    pub grpc_listen: GrpcListen,
    /// The listener of the admin API. By default only this machine can reach it.
    pub admin_listen: ListenAddress,
    /// The folder of artifacts that the server loads by itself.
    pub repository: PathBuf,
    /// The folder of the ledger, deployed artifacts and compiled versions.
    pub state: PathBuf,
    /// The model of requests whose path names none.
    pub default_model: Option<ModelName>,
    /// How the server presents itself to clients of the Open Inference Protocol.
    pub server: ServerIdentity,
    /// The certificate of all listeners; `None` for plain HTTP.
    pub tls: Option<TlsSection>,
    /// The web pages that may send requests.
    pub origins: Origins,
    /// The proxies whose headers are honoured. None by default, because any client can send them.
    pub trusted_proxies: TrustedProxies,
    /// The API keys of the file, beside those made by operators.
    pub keys: Vec<Key>,
    /// The rate of keys that have none of their own. `None`, the default, is unlimited: a server whose
    /// keys are all trusted needs no limits.
    pub key_rate: Option<Rate>,
    /// The rate of all keys together, by model.
    pub model_rates: BTreeMap<ModelName, Rate>,
    /// The splits of traffic, in parts per million.
    pub splits: BTreeMap<ModelName, BTreeMap<Version, u32>>,
    /// What keeps a caller on a version, by model.
    pub sticky: BTreeMap<ModelName, Sticky>,
    /// How many replaced versions stay loaded, by model.
    pub max_parked: BTreeMap<ModelName, usize>,
    /// The models whose inputs are kept where a shadow disagrees.
    pub shadow_captures: BTreeSet<ModelName>,
    /// How long responses are kept for retries, and how many.
    pub answers: AnswerLimits,
    /// Which listener serves `/metrics`, and whether it needs a key.
    pub metrics: MetricsAccess,
    /// The export of spans.
    pub tracing: TraceSettings,
    /// Where sampled requests are written.
    pub capture: CaptureSettings,
    /// The share of requests that are captured, by model.
    pub capture_shares: BTreeMap<ModelName, f64>,
    /// The operations that the host executes for guests.
    pub arithmetic: ArithmeticSettings,
    /// The limits of versions, by model.
    pub models: BTreeMap<ModelName, ModelLimits>,
    /// All other bounds.
    pub limits: Limits,
    /// Options of the command line alone, read once at the start.
    pub start: StartOptions,
}

/// How a server starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Whether the ledger may have lost changes.
    pub on_ledger_loss: OnLoss,
    /// Whether this is demo mode: its keys are public, and everything it serves is in the repository
    /// folder, so the state folder of an older release can be discarded.
    pub is_demo: bool,
}

/// What keeps a caller on a version while shares grow: the value of a header or of a field of the body.
/// The header takes precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sticky {
    /// The name of the header.
    pub header: Option<String>,
    /// The name of the field, beside the inputs or `instances`, or the name of an input.
    pub field: Option<String>,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("understand {path:?}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A value is invalid.
    #[error("use `{key}`: {reason}")]
    Value {
        /// The key of the file.
        key: String,
        /// Why.
        reason: String,
    },
}

impl ConfigFile {
    /// Read the file, if one is given, and apply the overrides.
    ///
    /// # Errors
    /// [`ConfigError`], if the file cannot be read or parsed, or an override names an unknown key.
    pub fn read(path: Option<&Path>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let mut text = String::new();
        if let Some(path) = path {
            let read = |source| ConfigError::Read { path: path.to_owned(), source };
            text = std::fs::read_to_string(path).map_err(read)?;
        }
        Self::parse(&text, path.unwrap_or(Path::new("")), overrides)
    }

    /// The same for the text of a file.
    pub(crate) fn parse(
        text: &str,
        path: &Path,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        let parse_error = |error: toml::de::Error| {
            // toml's own message has several lines.
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.unwrap_or_default().matches('\n').count() + 1;
            let reason = format!("line {line}: {}", error.message());
            ConfigError::Parse { path: path.to_owned(), reason }
        };
        let file = toml::from_str(text).map_err(parse_error)?;
        if overrides.is_empty() {
            return Ok(file);
        }
        let mut table = text.parse::<toml::Table>().map_err(parse_error)?;
        for one in overrides {
            one.apply(&mut table)?;
        }
        table.try_into().map_err(|error: toml::de::Error| {
            let named: Vec<_> = overrides.iter().map(Override::key).collect();
            let reason = error.message().to_owned();
            ConfigError::Value { key: named.join(", "), reason }
        })
    }

    /// Check all values and fill in the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] with the first value that is invalid.
    pub fn validate(self) -> Result<Settings, ConfigError> {
        let mut limits = self.limits.validate()?;
        let arithmetic = self.arithmetic.validate()?;
        limits.model.instance.arithmetic = arithmetic.default_grant();
        limits.engine.use_idle_cores = arithmetic.use_idle_cores;
        let (mut splits, mut models) = (BTreeMap::new(), BTreeMap::new());
        let (mut sticky, mut max_parked) = (BTreeMap::new(), BTreeMap::new());
        let (mut shadow_captures, mut model_rates) = (BTreeSet::new(), BTreeMap::new());
        let mut capture_shares = BTreeMap::new();
        for (model, section) in self.models {
            let wrong = |key: &str, reason: &str| ConfigError::Value {
                key: format!("models.{model}.{key}"),
                reason: reason.to_owned(),
            };
            let of_model = section.validate(&limits.model, arithmetic.backend);
            let of_model = of_model.map_err(|(key, why)| wrong(key, why))?;
            let memory = &mut limits.engine.max_memory_bytes;
            *memory = (*memory).max(of_model.instance.memory_bytes);
            models.insert(model.clone(), of_model);
            model_rates.extend(section.rate.map(|rate| (model.clone(), rate)));
            max_parked.extend(section.parked_versions.map(|most| (model.clone(), most)));
            if section.shadow_capture == Some(true) {
                shadow_captures.insert(model.clone());
            }
            let share = observe::validate_share(section.capture_share);
            capture_shares.insert(model.clone(), share.map_err(|(key, why)| wrong(key, why))?);
            let key = section.validate_sticky().map_err(|(key, why)| wrong(key, why))?;
            sticky.insert(model.clone(), key);
            let split = section.validate_split().map_err(|reason| wrong("split", &reason))?;
            splits.extend(split.map(|split| (model, split)));
        }
        let state = self.state.unwrap_or_else(|| "state".into());
        Ok(Settings {
            listen: self.listen.unwrap_or(ListenAddress::loopback(8000)),
            grpc_listen: self.grpc_listen.unwrap_or_default(),
            admin_listen: self.admin_listen.unwrap_or(ListenAddress::loopback(8002)),
            repository: self.repository.unwrap_or_else(|| "repository".into()),
            metrics: self.metrics.validate(),
            tracing: self.tracing.validate()?,
            capture: self.capture.validate(&state)?,
            capture_shares,
            state,
            default_model: self.default_model,
            server: self.server.validate()?,
            tls: self.tls,
            origins: self.cors.validate()?,
            trusted_proxies: self.proxy.validate()?,
            keys: keys::validate(self.keys)?,
            key_rate: self.rate_limit.validate()?,
            model_rates,
            splits,
            sticky,
            max_parked,
            shadow_captures,
            answers: self.idempotency.validate()?,
            arithmetic,
            models,
            limits,
            start: StartOptions::default(),
        })
    }
}

/// The longest time of the configuration. A longer one is a mistake, and adding it to a clock could
/// overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Check that a time is not longer than [`LONGEST`].
fn bounded(key: &str, time: Duration) -> Result<Duration, ConfigError> {
    if time > LONGEST {
        let reason = "it must be at most a year".to_owned();
        return Err(ConfigError::Value { key: key.to_owned(), reason });
    }
    Ok(time)
}

/// The value, or the default; a value of 0 is an error.
fn positive<T: Copy + PartialEq + From<u8>>(
    name: &str,
    value: Option<T>,
    default: T,
) -> Result<T, ConfigError> {
    positive_at(&format!("limits.{name}"), value, default)
}

/// [`positive`] for a key of any section.
fn positive_at<T: Copy + PartialEq + From<u8>>(
    key: &str,
    value: Option<T>,
    default: T,
) -> Result<T, ConfigError> {
    match value {
        Some(value) if value == T::from(0) => {
            let reason = "it must be at least 1".to_owned();
            Err(ConfigError::Value { key: key.to_owned(), reason })
        }
        Some(value) => Ok(value),
        None => Ok(default),
    }
}

fn out_of_range(name: &str, reason: &str) -> ConfigError {
    ConfigError::Value { key: format!("limits.{name}"), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guesthouse_runtime::pool::{Isolation, ReuseLimits};

    fn validate(text: &str) -> Result<Settings, String> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| error.to_string())?;
        file.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_valid() {
        let settings = validate("").unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(settings.grpc_listen, GrpcListen::At(ListenAddress::loopback(8001)));
        assert_eq!(settings.admin_listen.to_string(), "127.0.0.1:8002");
        assert_eq!(validate("grpc_listen = \"off\"").unwrap().grpc_listen, GrpcListen::Off);
        assert!(settings.keys.is_empty() && settings.splits.is_empty());
    }

    #[test]
    fn a_time_over_a_year_is_rejected() {
        for key in ["drain_seconds", "linger_seconds", "predict_milliseconds", "repository_seconds"]
        {
            let with = |value: u64| validate(&format!("[limits]\n{key} = {value}"));
            assert!(with(60).is_ok(), "{key}");
            assert!(with(i64::MAX as u64).is_err(), "{key}");
        }
        assert!(validate("[models.a]\npredict_milliseconds = 9223372036854775807").is_err());
    }

    #[test]
    fn a_model_overrides_the_general_limits() {
        let text = "[limits]\npredict_milliseconds = 100\n[models.a]\nisolation = \"fresh\"\n\
                    instance_memory_mib = 512\ninstances = 1\nstack_kib = 1024\n[models.b]\npredict_milliseconds = 200\n\
                    isolation = { reuse = { max_batches = 5 } }";
        let settings = validate(text).unwrap();
        let of = |name: &str| settings.models[&name.parse().unwrap()];
        assert_eq!(of("a").isolation, Isolation::Fresh);
        assert_eq!(of("a").predict_time, Duration::from_millis(100));
        assert_eq!(of("b").predict_time, Duration::from_millis(200));
        let reuse = ReuseLimits { max_batches: 5, ..ReuseLimits::default() };
        assert_eq!(of("b").isolation, Isolation::Reuse(reuse));
        assert_eq!(settings.limits.engine.max_memory_bytes, 512 << 20);
        assert_eq!((of("a").concurrency, of("a").instance.stack_bytes), (1, 1 << 20));
    }

    #[test]
    fn invalid_values_are_rejected() {
        let good = "[models.toxicity]\nsplit = { \"1.0.0\" = 900_000, \"2.0.0\" = 100_000 }";
        assert_eq!(validate(good).unwrap().splits.len(), 1);
        let mixed = "[models.toxicity]\nsplit = { \"1.0.0\" = \"90%\", \"2.0.0\" = 100_000 }";
        assert_eq!(validate(mixed).unwrap().splits, validate(good).unwrap().splits);
        for bad in [
            "unknown = 1",
            "listen = \"localhost\"",
            "grpc_listen = \"on\"",
            "[tls]\ncertificate = \"a.pem\"",
            "[cors]\norigins = [\"example.org\"]",
            "[server]\nname = \"\"",
            "[limits]\nbody_bytes = 0",
            "[limits]\nbody_bytes = 1000\nbodies_in_flight_bytes = 999",
            "[limits]\ninstance_memory_mib = 5000",
            "[models.toxicity]\nsplit = { \"1.0.0\" = 900_000 }",
            "[models.toxicity]\nsplit = { \"1.0.0\" = 90, \"2.0.0\" = 10 }",
            "[models.toxicity]\nsplit = { \"1.0.0\" = 0.9, \"2.0.0\" = 0.1 }",
            "[models.toxicity]\nsplit = { \"1.0.0\" = \"90\", \"2.0.0\" = \"10\" }",
            "[models.toxicity]\nsplit = { \"1.0.0\" = \"1\" }",
            "[models.toxicity]\nsplit = { \"1\" = 1_000_000 }",
            "[models.Toxicity]\n",
            "[models.toxicity]\nisolation = \"none\"",
            "[models.toxicity]\nsticky_header = \"a b\"",
            "[models.toxicity]\nisolation = { reuse = { batches = 1 } }",
            "[models.toxicity]\nisolation = { reuse = { max_batches = 0 } }",
            "[models.toxicity]\ninstance_memory_mib = 0",
            "[models.toxicity]\ninstance_memory_mib = 5000",
            "[models.toxicity]\npredict_milliseconds = 0",
            "[models.toxicity]\nstack_kib = 0",
            "[models.toxicity.batching]\nmax_batch_size = 0",
            "[models.toxicity.batching]\nmax_queue_delay_microseconds = 1_000_001",
            "[models.toxicity]\ncapture_share = 1.5",
            "[tracing]\nsample = -0.1",
            "[tracing]\nendpoint = \"localhost:4317\"",
            "[capture]\nfiles = 0",
            "[arithmetic]\nbackend = \"simd128\"",
            "[models.toxicity]\narithmetic = \"auto\"",
            "[models.toxicity]\ninstances = 0",
            "[limits]\nthreads_per_version = 2\n[models.toxicity]\ninstances = 3",
        ] {
            assert!(validate(bad).is_err(), "{bad}");
        }
    }

    fn assert_smaller_sections(file: &ConfigFile) {
        let ArithmeticSection { granted: Some(_), backend: Some(_), use_idle_cores: Some(_) } =
            &file.arithmetic
        else {
            panic!("a key of arithmetic is not in the book");
        };
        let (CorsSection { origins: Some(_) }, ProxySection { trusted: Some(_) }) =
            (&file.cors, &file.proxy)
        else {
            panic!("a key of cors or proxy is not in the book");
        };
        let RateLimitSection { requests_per_second: Some(_), burst: Some(_) } = &file.rate_limit
        else {
            panic!("a key of rate_limit is not in the book");
        };
        let IdempotencySection { seconds: Some(_), memory_mib: Some(_) } = &file.idempotency else {
            panic!("a key of idempotency is not in the book");
        };
        let ServerSection { name: Some(_), repository_changes: Some(_) } = &file.server else {
            panic!("a key of server is not in the book");
        };
        let TracingSection { endpoint: Some(_), sample: Some(_), service: Some(_) } = &file.tracing
        else {
            panic!("a key of tracing is not in the book");
        };
        let CaptureSection { folder: Some(_), file_mib: Some(_), files: Some(_) } = &file.capture
        else {
            panic!("a key of capture is not in the book");
        };
    }

    #[test]
    fn the_book_documents_every_key() {
        let page = include_str!("../../docs/src/reference/configuration.md");
        let (_, block) = page.split_once("```toml\n").unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let file: ConfigFile = toml::from_str(&block.replace('…', &"0".repeat(64))).unwrap();
        // Whoever adds a key has to name it here, and then in the book.
        let LimitsSection {
            body_bytes: Some(_),
            bodies_in_flight_bytes: Some(_),
            batch_rows: Some(_),
            body_seconds: Some(_),
            connections: Some(_),
            head_seconds: Some(_),
            idle_seconds: Some(_),
            predict_milliseconds: Some(_),
            drain_seconds: Some(_),
            predict_milliseconds_at_most: Some(_),
            threads_per_version: Some(_),
            inference_threads: Some(_),
            queued_batches: Some(_),
            instances: Some(_),
            instance_memory_mib: Some(_),
            memory_mib: Some(_),
            preinit_cpu_seconds: Some(_),
            preinit_memory_mib: Some(_),
            preinit_priority: Some(_),
            start_seconds: Some(_),
            traffic_log_seconds: Some(_),
            linger_seconds: Some(_),
            repository_seconds: Some(_),
        } = file.limits
        else {
            panic!("a limit is not in the book");
        };
        assert!(file.tls.is_some(), "TLS is not in the book");
        let [model] = file.models.values().collect::<Vec<_>>()[..] else { panic!("one model") };
        let ModelSection {
            split: Some(_),
            sticky_header: Some(_),
            sticky_field: Some(_),
            parked_versions: Some(_),
            rate: Some(_),
            shadow_capture: Some(_),
            capture_share: Some(_),
            isolation: Some(_),
            predict_milliseconds: None,
            instance_memory_mib: None,
            table_elements: Some(_),
            output_mib: Some(_),
            log_kib: Some(_),
            stack_kib: Some(_),
            instances: Some(_),
            accept_non_finite: Some(_),
            arithmetic: Some(_),
            batching:
                BatchingSection {
                    enabled: Some(_),
                    max_batch_size: Some(_),
                    max_queue_delay_microseconds: Some(_),
                },
        } = model
        else {
            panic!("a key of models is not in the book");
        };
        let [key] = &file.keys[..] else { panic!("one key") };
        let KeySection { name: _, sha256: _, scopes: Some(_), expires: Some(_), rate: Some(_) } =
            key
        else {
            panic!("a key of keys is not in the book");
        };
        assert_smaller_sections(&file);
        assert!(file.validate().is_ok());
    }
}
