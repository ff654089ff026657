//! What the Open Inference Protocol tells of the server and of its models, and how its clients load and
//! unload them: the same for REST and for gRPC. Field names are the protocol's.
//!
//! Health and the server's metadata need no key. What is known of a model needs a key that is good for
//! it, as in the catalogue; all of the model repository needs an admin key.

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
use crate::edge::Edge;
use crate::edge::access;
use crate::edge::codec::tensors::{Parameter, Parameters, in_protocol_words, named};
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::observe::Account;
use crate::edge::pages::Scope;
use guesthouse_control::control::{ChangeOptions, Control, ControlError};
use guesthouse_control::ledger::Author;
use guesthouse_control::registry::{ModelVersions, Snapshot, VersionState};
use guesthouse_control::router::{self, RouteError};
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::ServableVersion;

/// What works here beyond the protocol itself. Load tools switch features on by these.
const EXTENSIONS: [&str; 6] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
];

/// The extension that operators can switch off.
const REPOSITORY: &str = "model_repository";

/// Whether requests should be sent here: what `/readyz` says.
pub(in crate::edge) fn is_ready(edge: &Edge) -> bool {
    edge.registry.snapshot().is_ready() && !edge.draining.load(Ordering::Relaxed)
}

/// The server.
pub(in crate::edge) fn server(edge: &Edge) -> ServerMetadata {
    let words = &edge.policy.load().server;
    let works = |extension: &&str| words.repository_changes || *extension != REPOSITORY;
    let extensions = EXTENSIONS.into_iter().filter(works).collect();
    ServerMetadata { name: words.name.clone(), version: env!("CARGO_PKG_VERSION"), extensions }
}

/// What has been counted of all versions that are loaded, of the models in the scope.
pub(in crate::edge) fn statistics(edge: &Edge, scope: &Scope) -> Vec<ModelStatistics> {
    let snapshot = edge.registry.snapshot();
    let versions = scope.models(&snapshot).flat_map(|(_, model)| model.versions.values());
    let loaded = versions.filter_map(VersionState::servable);
    loaded.map(|version| ModelStatistics::of(version)).collect()
}

/// The name of the model whose metadata would be where the statistics of all models are.
const STATS: &str = "stats";

/// The metadata of the model of that name, if there is one in the scope: it is told beside the statistics.
pub(in crate::edge) fn metadata_of_stats(edge: &Edge, scope: &Scope) -> Map<String, Value> {
    let snapshot = edge.registry.snapshot();
    let answering = || {
        let name: ModelName = STATS.parse().ok().filter(|name| scope.has(name))?;
        one(&snapshot, &name, &Selector::Default).ok()
    };
    let metadata =
        answering().map(|version| ModelMetadata::of(&version, all_of(&snapshot, &version)));
    match metadata.map(serde_json::to_value) {
        Some(Ok(Value::Object(metadata))) => metadata,
        _ => Map::new(),
    }
}

/// All versions there are, or those that can be asked.
pub(in crate::edge) fn index(edge: &Edge, only_ready: bool) -> Vec<IndexEntry> {
    let snapshot = edge.registry.snapshot();
    let all = snapshot.models.iter().flat_map(|(name, model)| index_of(name, model));
    let states = edge.registry.states();
    let gone = states
        .iter()
        .filter(|(name, state)| !state.withdrawn.is_empty() && !snapshot.models.contains_key(name));
    let gone = gone.map(|(name, _)| {
        let (name, version, reason) = (name.to_string(), String::new(), "unloaded".to_owned());
        IndexEntry { name, version, state: "UNAVAILABLE", reason }
    });
    all.chain(gone).filter(|entry| !only_ready || entry.state == "READY").collect()
}

/// Somebody who asks about models.
pub(in crate::edge) struct Asker<'a> {
    pub(in crate::edge) edge: &'a Edge,
    /// Or what stands for them in gRPC.
    pub(in crate::edge) headers: &'a HeaderMap,
    /// Is told who asks.
    pub(in crate::edge) account: &'a mut Account,
}

impl Asker<'_> {
    /// Whether a version can be asked; an empty `version` stands for the model's traffic. An error for a
    /// model that there is not.
    pub(in crate::edge) fn model_is_ready(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<bool, ApiError> {
        // A server that goes down is ready for nothing.
        let is_draining = self.edge.draining.load(Ordering::Relaxed);
        let (name, selector) = self.permitted(model, version)?;
        match one(&self.edge.registry.snapshot(), &name, &selector) {
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

    /// What a version takes and gives.
    pub(in crate::edge) fn metadata(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<ModelMetadata, ApiError> {
        let found = self.find(model, version)?;
        let versions = if version.is_empty() {
            all_of(&self.edge.registry.snapshot(), &found)
        } else {
            vec![found.id().version.to_string()]
        };
        Ok(ModelMetadata::of(&found, versions))
    }

    /// How a version is run.
    pub(in crate::edge) fn config(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<ModelConfig, ApiError> {
        self.find(model, version).map(|version| ModelConfig::of(&version))
    }

    /// What has been counted of a version.
    pub(in crate::edge) fn version_statistics(
        &mut self,
        model: &str,
        version: &str,
    ) -> Result<ModelStatistics, ApiError> {
        let version = self.find(model, version)?;
        Ok(ModelStatistics::of(&version))
    }

    /// A model that there is, for somebody who may ask about all of its versions and has not done so too
    /// often.
    pub(in crate::edge) fn reader_of(&mut self, model: &str) -> Result<ModelName, ApiError> {
        let caller = self.edge.identify(self.headers, self.account)?;
        let (name, _) = named(model, "").map_err(|error| in_protocol_words(error, model))?;
        self.edge.admit_reader(&caller, &name, self.account)?;
        if self.edge.registry.snapshot().models.contains_key(&name) {
            return Ok(name);
        }
        Err(in_protocol_words(RouteError::UnknownModel.into(), model))
    }

    /// Let somebody with an admin key see all that there is, if it has not asked too often.
    pub(in crate::edge) fn reader_of_index(&mut self) -> Result<(), ApiError> {
        let caller = access::administrator(&self.edge.keys, self.headers)?;
        self.account.caller = Some(caller.name().to_owned());
        Edge::charge(&caller, self.account)
    }

    /// See to it that a model is served. Of parameters, only a `config` that says nothing else than what
    /// holds anyhow is taken: how a version is run is the artifact's and the operator's to say.
    pub(in crate::edge) async fn load(
        &mut self,
        model: &str,
        parameters: &Parameters,
    ) -> Result<(), ApiError> {
        let actor = self.changer()?;
        let load = async {
            let wanted = wanted_config(parameters)?;
            let name = self.change(actor, model, Control::load_model).await?;
            let version = one(&self.edge.registry.snapshot(), &name, &Selector::Default)?;
            let Some(wanted) = wanted else { return Ok(()) };
            let is = serde_json::to_value(ModelConfig::of(&version)).unwrap_or_default();
            match wanted.iter().find(|(key, value)| is.get(key.as_str()) != Some(value)) {
                None => Ok(()),
                Some((key, _)) => {
                    let key: String = key.chars().take(MAX_SHOWN).collect();
                    Err(ApiError::malformed(format!("`{key}` of its configuration is not that")))
                }
            }
        };
        load.await.map_err(|error| failed_to("load", model, error))
    }

    /// Serve a model no more, as far as the rules for undeploying allow.
    pub(in crate::edge) async fn unload(
        &mut self,
        model: &str,
        parameters: &Parameters,
    ) -> Result<(), ApiError> {
        let actor = self.changer()?;
        let unload = async {
            // There are no dependents, so it makes no difference.
            match parameters.keys().find(|key| *key != "unload_dependents") {
                Some(unknown) => Err(unknown_parameter(unknown)),
                None => self.change(actor, model, Control::unload_model).await.map(drop),
            }
        };
        unload.await.map_err(|error| failed_to("unload", model, error))
    }

    /// Make a change, which goes on if its caller leaves; it may take as long as compiling does.
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

    /// The name of somebody with an admin key.
    pub(in crate::edge) fn administrator(&mut self) -> Result<String, ApiError> {
        let caller = access::administrator(&self.edge.keys, self.headers)?;
        self.account.caller = Some(caller.name().to_owned());
        Ok(caller.name().to_owned())
    }

    /// The same, if changes are taken here at all.
    pub(in crate::edge) fn changer(&mut self) -> Result<String, ApiError> {
        let actor = self.administrator()?;
        if self.edge.policy.load().server.repository_changes {
            return Ok(actor);
        }
        let message = "models are not loaded and unloaded here, but by the admin API";
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }

    /// A model that the key is good for, whether there is such a one or not.
    fn permitted(&mut self, model: &str, version: &str) -> Result<(ModelName, Selector), ApiError> {
        let caller = self.edge.identify(self.headers, self.account)?;
        let (name, selector) =
            named(model, version).map_err(|error| in_protocol_words(error, model))?;
        self.edge.permit(&caller, &name)?;
        Ok((name, selector))
    }

    /// The version that answers most of such requests.
    fn find(&mut self, model: &str, version: &str) -> Result<Arc<ServableVersion>, ApiError> {
        let (name, selector) = self.permitted(model, version)?;
        let found = one(&self.edge.registry.snapshot(), &name, &selector);
        found.map_err(|error| in_protocol_words(error.into(), model))
    }
}

/// The longest part of a caller's own words in an answer, in characters.
const MAX_SHOWN: usize = 64;

fn one(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
) -> Result<Arc<ServableVersion>, RouteError> {
    let found = router::explain(snapshot, model, selector, Instant::now())?;
    found.into_iter().next().map(|(version, ..)| version).ok_or(RouteError::NotReady)
}

/// The versions of its model that can be asked for by their number.
fn all_of(snapshot: &Snapshot, version: &ServableVersion) -> Vec<String> {
    snapshot.models.get(&version.id().name).map(loaded).unwrap_or_default()
}

fn loaded(model: &ModelVersions) -> Vec<String> {
    let versions = model.versions.iter().filter(|(_, state)| state.servable().is_some());
    versions.map(|(version, _)| version.to_string()).collect()
}

fn index_of(name: &ModelName, model: &ModelVersions) -> Vec<IndexEntry> {
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

/// The error in the words that clients look for; what is wrong with the caller's key stays as it is.
fn failed_to(what: &str, model: &str, error: ApiError) -> ApiError {
    let model: String = model.chars().take(MAX_SHOWN).collect();
    let message = format!("failed to {what} '{model}': {}", error.message);
    ApiError { message, ..error }
}

fn unknown_parameter(name: &str) -> ApiError {
    let name: String = name.chars().take(MAX_SHOWN).collect();
    ApiError::malformed(format!("parameter `{name}` is not taken"))
}

/// The configuration that a client wants a model to be loaded with.
fn wanted_config(parameters: &Parameters) -> Result<Option<Map<String, Value>>, ApiError> {
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
