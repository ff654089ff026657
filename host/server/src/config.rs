//! What the operator wrote, and what the server will do.
//!
//! A file of TOML (strict: unknown keys are errors), under what the command line and the
//! environment say, over the defaults. Every default stands beside its reason in [`Settings`].

mod idempotency;
mod keys;
mod limits;
mod listen;
mod metrics;
mod models;
mod overrides;
mod server;
mod transport;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use semver::Version;
use serde::Deserialize;

pub use idempotency::{AnswerLimits, IdempotencyFile};
pub use keys::{KeyFile, RateLimitFile};
pub use limits::{Limits, LimitsFile};
pub use listen::{GrpcListen, ListenAddress, ListenAddressError};
pub use metrics::{MetricsAccess, MetricsFile, MetricsListener};
pub use models::{BatchingFile, IsolationFile, ModelFile, ReuseFile};
pub use overrides::Override;
pub use server::{ServerFile, ServerWords};
pub use transport::{CorsFile, Origins, ProxyFile, TlsFile, TrustedProxies};
pub use watch::{CaptureFile, TracingFile};

use crate::observe::capture::CaptureSettings;
use crate::observe::trace::TraceSettings;
use guesthouse_control::keys::Key;
use guesthouse_control::ledger::OnLoss;
use guesthouse_control::rate::Rate;
use guesthouse_model::ModelName;
use guesthouse_runtime::version::ModelLimits;

/// The configuration file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Address or name, and port, of the HTTP endpoints; 127.0.0.1:8000.
    pub listen: Option<ListenAddress>,
    /// The same of gRPC, or `off`; 127.0.0.1:8001.
    pub grpc_listen: Option<GrpcListen>,
    /// The same of the admin API; 127.0.0.1:8002.
    pub admin_listen: Option<ListenAddress>,
    /// Folder of the artifacts; `repository`.
    pub repository: Option<PathBuf>,
    /// Folder of what is served; `state`.
    pub state: Option<PathBuf>,
    /// The model that `/predict` and `/v1/predict` mean; the only one, if there is one only.
    pub default_model: Option<ModelName>,
    /// What the server says of itself.
    #[serde(default)]
    pub server: ServerFile,
    /// The certificate; without it, plain HTTP.
    pub tls: Option<TlsFile>,
    /// Which web pages may ask.
    #[serde(default)]
    pub cors: CorsFile,
    /// The reverse proxies in front of the server.
    #[serde(default)]
    pub proxy: ProxyFile,
    /// Limits, by name.
    #[serde(default)]
    pub limits: LimitsFile,
    /// Who may ask for what, beside those whose keys were made by operators.
    #[serde(default)]
    pub keys: Vec<KeyFile>,
    /// How often they may ask.
    #[serde(default)]
    pub rate_limit: RateLimitFile,
    /// What holds for predictions that are asked for again.
    #[serde(default)]
    pub idempotency: IdempotencyFile,
    /// Where Prometheus reads, and whether it needs a key.
    #[serde(default)]
    pub metrics: MetricsFile,
    /// Traces of requests.
    #[serde(default)]
    pub tracing: TracingFile,
    /// Where requests are kept, if any are.
    #[serde(default)]
    pub capture: CaptureFile,
    /// What holds for single models.
    #[serde(default)]
    pub models: BTreeMap<ModelName, ModelFile>,
}

/// What the server will do: checked, with every default filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Only this machine can reach the default, until somebody decides otherwise.
    pub listen: ListenAddress,
    /// Of gRPC, if it is served; the same holds for it. The port is the one that clients of other
    /// model servers have in their examples.
    pub grpc_listen: GrpcListen,
    /// Of the admin API; the same holds for it.
    pub admin_listen: ListenAddress,
    /// Folder of the artifacts.
    pub repository: PathBuf,
    /// Folder of what is served.
    pub state: PathBuf,
    /// The model that paths without a model mean.
    pub default_model: Option<ModelName>,
    /// What the server says of itself.
    pub server: ServerWords,
    /// The certificate of all listeners; without it, plain HTTP.
    pub tls: Option<TlsFile>,
    /// The web pages that may ask for predictions.
    pub origins: Origins,
    /// The proxies whose headers are taken at their word: none, because anybody can send them.
    pub trusted_proxies: TrustedProxies,
    /// Who may ask for what, beside those whose keys were made by operators.
    pub keys: Vec<Key>,
    /// How often a key may ask for predictions of which nothing is said; as often as it likes, if none:
    /// who has keys for friends only needs no limits.
    pub key_rate: Option<Rate>,
    /// How often all keys together may ask for predictions, by model.
    pub model_rates: BTreeMap<ModelName, Rate>,
    /// How traffic is divided, in parts per million.
    pub splits: BTreeMap<ModelName, BTreeMap<Version, u32>>,
    /// How callers are told apart, by model.
    pub sticky: BTreeMap<ModelName, Sticky>,
    /// How many replaced versions stay loaded, by model.
    pub max_parked: BTreeMap<ModelName, usize>,
    /// Models whose inputs may be kept where a shadow disagrees.
    pub shadow_captures: BTreeSet<ModelName>,
    /// What is kept for who asks again.
    pub answers: AnswerLimits,
    /// Where Prometheus reads, and whether it needs a key.
    pub metrics: MetricsAccess,
    /// Traces of requests.
    pub tracing: TraceSettings,
    /// Where requests are kept, if any are.
    pub capture: CaptureSettings,
    /// Which share of a model's requests is kept.
    pub capture_shares: BTreeMap<ModelName, f64>,
    /// What versions may use, by model.
    pub models: BTreeMap<ModelName, ModelLimits>,
    /// All other bounds.
    pub limits: Limits,
    /// What only the command line says, and only a start looks at.
    pub start: StartOptions,
}

/// How a server starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Whether the ledger may have lost changes.
    pub on_ledger_loss: OnLoss,
    /// Whether this is the demonstration: everybody knows its keys, and what it serves is in its
    /// repository folder, so a state folder that an older release has left need not be taken over.
    pub is_demo: bool,
}

/// What keeps a caller with a version while weights grow: the value of a header, or of a field of the
/// body. The header comes first, where both are named and there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sticky {
    /// Its name.
    pub header: Option<String>,
    /// Its name, beside the inputs or `instances`, or the name of an input.
    pub field: Option<String>,
}

/// A configuration cannot be used.
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
    /// The file is not what it should be.
    #[error("understand {path:?}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A value makes no sense.
    #[error("use `{key}`: {reason}")]
    Value {
        /// The key of the file.
        key: String,
        /// Why.
        reason: String,
    },
}

impl ConfigFile {
    /// Read the file, if there is one, and put what the operator says beside it over it.
    ///
    /// # Errors
    /// [`ConfigError`], if there is no such file, or a key that there is not.
    pub fn read(path: Option<&Path>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let mut text = String::new();
        if let Some(path) = path {
            let read = |source| ConfigError::Read { path: path.to_owned(), source };
            text = std::fs::read_to_string(path).map_err(read)?;
        }
        Self::parse(&text, path.unwrap_or(Path::new("")), overrides)
    }

    /// The same of a file that says this.
    pub(crate) fn parse(
        text: &str,
        path: &Path,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        let parse_error = |error: toml::de::Error| {
            // toml's own words go over several lines.
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

    /// What the server will do.
    ///
    /// # Errors
    /// [`ConfigError`] with the first value that makes no sense.
    pub fn settle(self) -> Result<Settings, ConfigError> {
        let mut limits = self.limits.settle()?;
        let (mut splits, mut models) = (BTreeMap::new(), BTreeMap::new());
        let (mut sticky, mut max_parked) = (BTreeMap::new(), BTreeMap::new());
        let (mut shadow_captures, mut model_rates) = (BTreeSet::new(), BTreeMap::new());
        let mut capture_shares = BTreeMap::new();
        for (model, file) in self.models {
            let wrong = |key: &str, reason: &str| ConfigError::Value {
                key: format!("models.{model}.{key}"),
                reason: reason.to_owned(),
            };
            let of_model = file.settle(&limits.model).map_err(|(key, why)| wrong(key, why))?;
            let memory = &mut limits.engine.max_memory_bytes;
            *memory = (*memory).max(of_model.instance.memory_bytes);
            models.insert(model.clone(), of_model);
            model_rates.extend(file.rate.map(|rate| (model.clone(), rate)));
            max_parked.extend(file.parked_versions.map(|most| (model.clone(), most)));
            if file.shadow_capture == Some(true) {
                shadow_captures.insert(model.clone());
            }
            let share = watch::settle_share(file.capture_share);
            capture_shares.insert(model.clone(), share.map_err(|(key, why)| wrong(key, why))?);
            let key = file.settle_sticky().map_err(|(key, why)| wrong(key, why))?;
            sticky.insert(model.clone(), key);
            let split = file.settle_split().map_err(|reason| wrong("split", &reason))?;
            splits.extend(split.map(|split| (model, split)));
        }
        let state = self.state.unwrap_or_else(|| "state".into());
        Ok(Settings {
            listen: self.listen.unwrap_or(ListenAddress::loopback(8000)),
            grpc_listen: self.grpc_listen.unwrap_or_default(),
            admin_listen: self.admin_listen.unwrap_or(ListenAddress::loopback(8002)),
            repository: self.repository.unwrap_or_else(|| "repository".into()),
            metrics: self.metrics.settle(),
            tracing: self.tracing.settle()?,
            capture: self.capture.settle(&state)?,
            capture_shares,
            state,
            default_model: self.default_model,
            server: self.server.settle()?,
            tls: self.tls,
            origins: self.cors.settle()?,
            trusted_proxies: self.proxy.settle()?,
            keys: keys::settle(self.keys)?,
            key_rate: self.rate_limit.settle()?,
            model_rates,
            splits,
            sticky,
            max_parked,
            shadow_captures,
            answers: self.idempotency.settle()?,
            models,
            limits,
            start: StartOptions::default(),
        })
    }
}

/// The longest of all times: whoever asks for more means something else, and a time after the end of
/// the clock cannot be waited for.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The time, if it is one that can be waited for.
fn bounded(key: &str, time: Duration) -> Result<Duration, ConfigError> {
    if time > LONGEST {
        let reason = "it must be at most a year".to_owned();
        return Err(ConfigError::Value { key: key.to_owned(), reason });
    }
    Ok(time)
}

fn positive<T: Copy + PartialEq + From<u8>>(
    name: &str,
    value: Option<T>,
    default: T,
) -> Result<T, ConfigError> {
    positive_at(&format!("limits.{name}"), value, default)
}

/// The same for a key of any section.
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

    fn settle(text: &str) -> Result<Settings, String> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| error.to_string())?;
        file.settle().map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_enough() {
        let settings = settle("").unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(settings.grpc_listen, GrpcListen::At(ListenAddress::loopback(8001)));
        assert_eq!(settings.admin_listen.to_string(), "127.0.0.1:8002");
        assert_eq!(settle("grpc_listen = \"off\"").unwrap().grpc_listen, GrpcListen::Off);
        assert!(settings.keys.is_empty() && settings.splits.is_empty());
    }

    #[test]
    fn a_time_that_cannot_be_waited_for_is_refused() {
        for key in ["drain_seconds", "linger_seconds", "predict_milliseconds", "repository_seconds"]
        {
            let with = |value: u64| settle(&format!("[limits]\n{key} = {value}"));
            assert!(with(60).is_ok(), "{key}");
            assert!(with(i64::MAX as u64).is_err(), "{key}");
        }
        assert!(settle("[models.a]\npredict_milliseconds = 9223372036854775807").is_err());
    }

    #[test]
    fn models_have_limits_of_their_own() {
        let text = "[limits]\npredict_milliseconds = 100\n[models.a]\nisolation = \"fresh\"\n\
                    instance_memory_mib = 512\ninstances = 1\nstack_kib = 1024\n[models.b]\npredict_milliseconds = 200\n\
                    isolation = { reuse = { max_batches = 5 } }";
        let settings = settle(text).unwrap();
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
    fn what_makes_no_sense_is_refused() {
        let good = "[models.toxicity]\nsplit = { \"1.0.0\" = 900_000, \"2.0.0\" = 100_000 }";
        assert_eq!(settle(good).unwrap().splits.len(), 1);
        let mixed = "[models.toxicity]\nsplit = { \"1.0.0\" = \"90%\", \"2.0.0\" = 100_000 }";
        assert_eq!(settle(mixed).unwrap().splits, settle(good).unwrap().splits);
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
            "[models.toxicity]\ninstances = 0",
            "[limits]\nthreads_per_version = 2\n[models.toxicity]\ninstances = 3",
        ] {
            assert!(settle(bad).is_err(), "{bad}");
        }
    }

    fn assert_watching(file: &ConfigFile) {
        let (CorsFile { origins: Some(_) }, ProxyFile { trusted: Some(_) }) =
            (&file.cors, &file.proxy)
        else {
            panic!("a key of cors or proxy is not in the book");
        };
        let RateLimitFile { requests_per_second: Some(_), burst: Some(_) } = &file.rate_limit
        else {
            panic!("a key of rate_limit is not in the book");
        };
        let IdempotencyFile { seconds: Some(_), memory_mib: Some(_) } = &file.idempotency else {
            panic!("a key of idempotency is not in the book");
        };
        let ServerFile { name: Some(_), repository_changes: Some(_) } = &file.server else {
            panic!("a key of server is not in the book");
        };
        let TracingFile { endpoint: Some(_), sample: Some(_), service: Some(_) } = &file.tracing
        else {
            panic!("a key of tracing is not in the book");
        };
        let CaptureFile { folder: Some(_), file_mib: Some(_), files: Some(_) } = &file.capture
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
        let LimitsFile {
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
        let ModelFile {
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
            batching:
                BatchingFile {
                    enabled: Some(_),
                    max_batch_size: Some(_),
                    max_queue_delay_microseconds: Some(_),
                },
        } = model
        else {
            panic!("a key of models is not in the book");
        };
        let [key] = &file.keys[..] else { panic!("one key") };
        let KeyFile { name: _, sha256: _, scopes: Some(_), expires: Some(_), rate: Some(_) } = key
        else {
            panic!("a key of keys is not in the book");
        };
        assert_watching(&file);
        assert!(file.settle().is_ok());
    }
}
