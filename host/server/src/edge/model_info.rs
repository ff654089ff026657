//! Information about the server and its models in the Open Inference Protocol, and the loading and unloading
//! of models, for REST and gRPC. The names of fields are the protocol's.
//!
//! Health and the server's metadata require no key. Information about a model requires a key for it, as in
//! the catalogue; the model repository requires a key with the scope `admin`.

mod messages;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::http::HeaderMap;
use serde_json::{Map, Value};

pub(in crate::edge) use self::messages::{
    ConfigInput, ConfigOutput, Duration, IndexEntry, ModelConfig, ModelMetadata, ModelStatistics,
    ServerMetadata, TensorMetadata,
};
use crate::edge::codec::tensors::{Parameter, Parameters, in_protocol_words, named};
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::pages::ModelScope;
use crate::edge::request_log::RequestLog;
use crate::edge::state::Edge;
use guesthouse_control::control::{ChangeOptions, Control, ControlError};
use guesthouse_control::ledger::Author;
use guesthouse_control::registry::{ModelVersions, Snapshot, VersionState};
use guesthouse_control::router::{self, RouteError};
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::ServableVersion;

/// The supported extensions of the protocol. Clients enable features by their names.
const EXTENSIONS: [&str; 6] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
];

/// The extension that operators can disable.
const REPOSITORY: &str = "model_repository";

/// Whether the server is ready, as `/readyz` reports it.
pub(in crate::edge) fn is_ready(edge: &Edge) -> bool {
    edge.registry.snapshot().is_ready() && !edge.draining.load(Ordering::Relaxed)
}

/// The metadata of the server.
pub(in crate::edge) fn server(edge: &Edge) -> ServerMetadata {
    let words = &edge.policy.load().server;
    let works = |extension: &&str| words.repository_changes || *extension != REPOSITORY;
    let extensions = EXTENSIONS.into_iter().filter(works).collect();
    ServerMetadata { name: words.name.clone(), version: env!("CARGO_PKG_VERSION"), extensions }
}

/// The statistics of all loaded versions of the models in the scope.
pub(in crate::edge) fn statistics(edge: &Edge, scope: &ModelScope) -> Vec<ModelStatistics> {
    let snapshot = edge.registry.snapshot();
    let versions = scope.models(&snapshot).flat_map(|(_, model)| model.versions.values());
    let loaded = versions.filter_map(VersionState::servable);
    loaded.map(|version| ModelStatistics::new(version)).collect()
}

/// The name of a model whose metadata has the same path as the statistics of all models.
const STATS: &str = "stats";

/// The metadata of the model with that name, if the scope has it: it is part of the statistics' response.
pub(in crate::edge) fn metadata_of_stats(edge: &Edge, scope: &ModelScope) -> Map<String, Value> {
    let snapshot = edge.registry.snapshot();
    let answering = || {
        let name: ModelName = STATS.parse().ok().filter(|name| scope.has(name))?;
        main_version(&snapshot, &name, &Selector::Default).ok()
    };
    let metadata = answering()
        .map(|version| ModelMetadata::new(&version, loaded_versions(&snapshot, &version)));
    match metadata.map(serde_json::to_value) {
        Some(Ok(Value::Object(metadata))) => metadata,
        _ => Map::new(),
    }
}

/// All versions, or only those that are ready.
pub(in crate::edge) fn index(edge: &Edge, only_ready: bool) -> Vec<IndexEntry> {
    let snapshot = edge.registry.snapshot();
    let all = snapshot.models.iter().flat_map(|(name, model)| index_entries(name, model));
    let states = edge.registry.states();
    let unloaded = states
        .iter()
        .filter(|(name, state)| !state.withdrawn.is_empty() && !snapshot.models.contains_key(name));
    let unloaded = unloaded.map(|(name, _)| {
        let (name, version, reason) = (name.to_string(), String::new(), "unloaded".to_owned());
        IndexEntry { name, version, state: "UNAVAILABLE", reason }
    });
    all.chain(unloaded).filter(|entry| !only_ready || entry.state == "READY").collect()
}

/// A request for information about models, or to load or unload one.
pub(in crate::edge) struct InfoRequest<'a> {
    pub(in crate::edge) edge: &'a Edge,
    /// The headers, or the metadata of a gRPC call.
    pub(in crate::edge) headers: &'a HeaderMap,
    pub(in crate::edge) log: &'a mut RequestLog,
}

impl InfoRequest<'_> {
    /// Whether a version is ready. An empty `version` stands for the version that gets most of the traffic.
    ///
    /// # Errors
    /// There is no such model.
    pub(in crate::edge) fn model_is_ready(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<bool, ApiError> {
        let is_draining = self.edge.draining.load(Ordering::Relaxed);
        let (name, selector) = self.authorize(model, version)?;
        match main_version(&self.edge.registry.snapshot(), &name, &selector) {
            Ok(_) => Ok(!is_draining),
            Err(
                RouteError::NotReady
                | RouteError::Suspended(_)
                | RouteError::CallerSuspended(_)
                | RouteError::Retired
                | RouteError::EmptyChannel,
            ) => Ok(false),
            Err(error) => Err(in_protocol_words(error.into(), model)),
        }
    }

    /// The inputs and outputs of a version.
    pub(in crate::edge) fn metadata(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<ModelMetadata, ApiError> {
        let found = self.find(model, version)?;
        let versions = if version.is_empty() {
            loaded_versions(&self.edge.registry.snapshot(), &found)
        } else {
            vec![found.id().version.to_string()]
        };
        Ok(ModelMetadata::new(&found, versions))
    }

    /// How a version is run.
    pub(in crate::edge) fn config(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<ModelConfig, ApiError> {
        self.find(model, version).map(|version| ModelConfig::new(&version))
    }

    /// The statistics of a version.
    pub(in crate::edge) fn version_statistics(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<ModelStatistics, ApiError> {
        let version = self.find(model, version)?;
        Ok(ModelStatistics::new(&version))
    }

    /// The name of an existing model, for a caller that may use it. Charged to the key's rate.
    pub(in crate::edge) fn reader_of(&mut self, model: &str) -> Result<ModelName, ApiError> {
        let caller = self.edge.identify(self.headers, self.log)?;
        let (name, _) = named(model, "").map_err(|error| in_protocol_words(error, model))?;
        self.edge.admit_reader(&caller, &name, self.log)?;
        if self.edge.registry.snapshot().models.contains_key(&name) {
            return Ok(name);
        }
        Err(in_protocol_words(RouteError::UnknownModel.into(), model))
    }

    /// Authorize an operator to read the index of all models. Charged to the key's rate.
    pub(in crate::edge) fn reader_of_index(&mut self) -> Result<(), ApiError> {
        let caller = self.edge.identify_admin(self.headers, self.log)?;
        Edge::charge(&caller, self.log)
    }

    /// Load a model. The only accepted parameter is a `config` that agrees with the model's configuration,
    /// which artifacts and operators determine.
    pub(in crate::edge) async fn load(
        &mut self,
        model: &str,
        parameters: &Parameters,
    ) -> Result<(), ApiError> {
        let actor = self.check_changes()?;
        let load = async {
            let expected = expected_config(parameters)?;
            let name = self.change(actor, model, Control::load_model).await?;
            let version = main_version(&self.edge.registry.snapshot(), &name, &Selector::Default)?;
            let Some(expected) = expected else { return Ok(()) };
            let actual = serde_json::to_value(ModelConfig::new(&version)).unwrap_or_default();
            match expected.iter().find(|(key, value)| actual.get(key.as_str()) != Some(value)) {
                None => Ok(()),
                Some((key, _)) => {
                    let key: String = key.chars().take(MAX_SHOWN).collect();
                    Err(ApiError::malformed(format!(
                        "`{key}` differs from the model's configuration"
                    )))
                }
            }
        };
        load.await.map_err(|error| with_context("load", model, error))
    }

    /// Unload a model, as far as the rules for undeploying allow it.
    pub(in crate::edge) async fn unload(
        &mut self,
        model: &str,
        parameters: &Parameters,
    ) -> Result<(), ApiError> {
        let actor = self.check_changes()?;
        let unload = async {
            // Models have no dependents, so the value does not matter.
            match parameters.keys().find(|key| *key != "unload_dependents") {
                Some(unknown) => Err(unknown_parameter(unknown)),
                None => self.change(actor, model, Control::unload_model).await.map(drop),
            }
        };
        unload.await.map_err(|error| with_context("unload", model, error))
    }

    /// Make a change, which continues if its caller disconnects; it may take as long as compiling a version.
    async fn change(
        &self,
        actor: String,
        model: &str,
        change: fn(&Control, &ModelName, &ChangeOptions) -> Result<(), ControlError>,
    ) -> Result<ModelName, ApiError> {
        let (name, _) = named(model, "")?;
        let reason = Some("model repository API".to_owned());
        let ask = ChangeOptions { author: Author { actor, reason }, ..ChangeOptions::default() };
        let (control, changed) = (Arc::clone(&self.edge.control), name.clone());
        let work = tokio::task::spawn_blocking(move || change(&control, &changed, &ask));
        work.await.map_err(|_panic| ApiError::internal())??;
        Ok(name)
    }

    /// Authorize an operator to change models by this API; the name of the key.
    pub(in crate::edge) fn check_changes(&mut self) -> Result<String, ApiError> {
        let caller = self.edge.identify_admin(self.headers, self.log)?;
        if self.edge.policy.load().server.repository_changes {
            return Ok(caller.name().to_owned());
        }
        let message = "models are loaded and unloaded by the admin API only";
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }

    /// The model and the version that are named, for a caller that may use the model. It may not exist.
    fn authorize(&mut self, model: &str, version: &str) -> Result<(ModelName, Selector), ApiError> {
        let caller = self.edge.identify(self.headers, self.log)?;
        let (name, selector) =
            named(model, version).map_err(|error| in_protocol_words(error, model))?;
        self.edge.check_model(&caller, &name)?;
        Ok((name, selector))
    }

    /// The version that answers most of the requests with these names.
    fn find(&mut self, model: &str, version: &str) -> Result<Arc<ServableVersion>, ApiError> {
        let (name, selector) = self.authorize(model, version)?;
        let found = main_version(&self.edge.registry.snapshot(), &name, &selector);
        found.map_err(|error| in_protocol_words(error.into(), model))
    }
}

/// The most characters of a caller's text in an error message.
const MAX_SHOWN: usize = 64;

fn main_version(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
) -> Result<Arc<ServableVersion>, RouteError> {
    let found = router::explain(snapshot, model, selector, Instant::now())?;
    found.into_iter().next().map(|(version, ..)| version).ok_or(RouteError::NotReady)
}

/// The loaded versions of a version's model.
fn loaded_versions(snapshot: &Snapshot, version: &ServableVersion) -> Vec<String> {
    snapshot.models.get(&version.id().name).map(loaded).unwrap_or_default()
}

fn loaded(model: &ModelVersions) -> Vec<String> {
    let versions = model.versions.iter().filter(|(_, state)| state.servable().is_some());
    versions.map(|(version, _)| version.to_string()).collect()
}

fn index_entries(name: &ModelName, model: &ModelVersions) -> Vec<IndexEntry> {
    let entry = |version: String, state, reason: &str| {
        let (name, reason) = (name.to_string(), reason.to_owned());
        IndexEntry { name, version, state, reason }
    };
    if model.versions.is_empty() {
        return vec![entry(String::new(), "UNKNOWN", "no version of it has been seen yet")];
    }
    let versions = model.versions.iter().map(|(version, state)| {
        let (state, reason) = match state {
            VersionState::Loading => ("LOADING", String::new()),
            VersionState::Ready(version) | VersionState::Parked(version) => {
                if version.breaker().allows(Instant::now()) {
                    ("READY", String::new())
                } else {
                    ("UNAVAILABLE", "it keeps failing and is suspended".to_owned())
                }
            }
            VersionState::Draining => ("UNLOADING", String::new()),
            VersionState::Retired => ("UNAVAILABLE", "unloaded".to_owned()),
            VersionState::Failed(failure) => {
                ("UNAVAILABLE", format!("{}: {}", failure.step, failure.reason))
            }
        };
        entry(version.to_string(), state, &reason)
    });
    versions.collect()
}

/// The error with the message that clients expect. Errors about keys are not changed.
fn with_context(what: &str, model: &str, error: ApiError) -> ApiError {
    let model: String = model.chars().take(MAX_SHOWN).collect();
    let message = format!("failed to {what} '{model}': {}", error.message);
    ApiError { message, ..error }
}

fn unknown_parameter(name: &str) -> ApiError {
    let name: String = name.chars().take(MAX_SHOWN).collect();
    ApiError::malformed(format!("parameter `{name}` is not taken"))
}

/// The configuration that a client expects the model to have.
fn expected_config(parameters: &Parameters) -> Result<Option<Map<String, Value>>, ApiError> {
    if let Some(unknown) = parameters.keys().find(|key| *key != "config") {
        return Err(unknown_parameter(unknown));
    }
    let config = match parameters.get("config") {
        None => return Ok(None),
        Some(Parameter::Text(text)) => serde_json::from_str(text).ok(),
        Some(_) => None,
    };
    config
        .map(Some)
        .ok_or_else(|| ApiError::malformed("`config` must be a JSON object in a string"))
}
