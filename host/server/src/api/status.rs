//! What is served: the models and versions of the server, their states, and the log levels.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use semver::Version;
use serde::{Deserialize, Serialize};

use super::OpenEnum;
use super::schema;
use guesthouse_artifact::Digest;
use guesthouse_control::rollout::{self, Share};
use guesthouse_model::ModelName;
use guesthouse_runtime::version;

/// The response of `GET /admin/v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The number of changes so far.
    pub revision: u64,
    /// The hash of the last entry of the audit log.
    #[serde(default)]
    #[schemars(with = "String")]
    pub audit_head: Option<String>,
    /// Whether the server is still loading what it served before its start.
    #[serde(default)]
    pub loading: bool,
    /// The models by name.
    pub models: Vec<ModelStatus>,
}

/// The response of `GET /admin/v1/models/{model}`: a model with its versions and its routing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ModelStatus {
    /// The model.
    #[schemars(with = "schema::ModelName")]
    pub model: ModelName,
    /// The revision of the last change of the model; 0 before the first.
    pub revision: u64,
    #[serde(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub routing: Routing,
    /// The versions, in ascending order.
    pub versions: Vec<VersionStatus>,
}

/// How the requests of a model are routed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Routing {
    /// The promoted version.
    #[serde(default)]
    #[schemars(with = "Option<schema::AnyVersion>")]
    pub stable: Option<Version>,
    /// The shares of candidates, in parts per million. The stable version has the rest.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, schema::Share>")]
    pub candidates: BTreeMap<Version, Share>,
    /// The version that is compared with the others.
    #[serde(default)]
    pub shadow: Option<Shadow>,
    /// The versions promoted before the stable one, the latest last.
    #[serde(default)]
    #[schemars(with = "Vec<schema::AnyVersion>")]
    pub promoted: Vec<Version>,
}

/// A version that sees a share of the requests which others answer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Shadow {
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// Its share of the requests, in parts per million.
    #[schemars(with = "schema::Share")]
    pub share: Share,
}

impl From<rollout::ShadowShare> for Shadow {
    fn from(shadow: rollout::ShadowShare) -> Self {
        let rollout::ShadowShare { version, share } = shadow;
        Self { version, share: Share::from_parts(share) }
    }
}

/// Shares by version, from parts per million.
pub(crate) fn shares(parts: BTreeMap<Version, u32>) -> BTreeMap<Version, Share> {
    parts.into_iter().map(|(version, parts)| (version, Share::from_parts(parts))).collect()
}

impl From<rollout::Routing> for Routing {
    fn from(routing: rollout::Routing) -> Self {
        let rollout::Routing { stable, candidates, shadow, promoted } = routing;
        let (candidates, shadow) = (shares(candidates), shadow.map(Shadow::from));
        Self { stable, candidates, shadow, promoted }
    }
}

/// A version and its state.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct VersionStatus {
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// The digest of the artifact; `null` if the version was rejected before it was deployed, or drains
    /// after it was undeployed.
    #[serde(default)]
    #[schemars(with = "Option<schema::Digest>")]
    pub digest: Option<Digest>,
    /// How far the version has come.
    pub state: OpenEnum<VersionState>,
    /// Whether the version is suspended because it keeps failing.
    #[serde(default)]
    pub suspended: bool,
    /// Whether the host executes operations for the loaded version.
    #[serde(default)]
    pub arithmetic: Option<OpenEnum<ArithmeticGrant>>,
    /// The step of loading that failed.
    #[serde(default)]
    pub failed_step: Option<String>,
    /// Why it failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// The time until the server tries again, if it does.
    #[serde(default)]
    pub retry_in_seconds: Option<u64>,
}

/// Whether the host executes operations of neural networks for a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ArithmeticGrant {
    /// The guest does not import them.
    Unused,
    /// It does.
    Granted,
    /// The configuration does not grant them, and the guest computes by itself.
    Denied,
}

impl From<version::ArithmeticGrant> for ArithmeticGrant {
    fn from(grant: version::ArithmeticGrant) -> Self {
        match grant {
            version::ArithmeticGrant::Unused => Self::Unused,
            version::ArithmeticGrant::Granted => Self::Granted,
            version::ArithmeticGrant::Denied => Self::Denied,
        }
    }
}

/// How far a version has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum VersionState {
    /// It is being pre-initialised, tested or warmed up.
    Loading,
    /// It serves, or can serve at once.
    Ready,
    /// It was replaced and stays loaded for a rollback.
    Parked,
    /// It was undeployed and finishes the requests in progress.
    Draining,
    /// It was replaced earlier and is loaded again when it is needed.
    Retired,
    /// It could not be loaded.
    Failed,
}

impl From<&guesthouse_control::registry::VersionState> for VersionState {
    fn from(state: &guesthouse_control::registry::VersionState) -> Self {
        use guesthouse_control::registry::VersionState as State;
        match state {
            State::Loading => Self::Loading,
            State::Ready(_) => Self::Ready,
            State::Parked(_) => Self::Parked,
            State::Draining => Self::Draining,
            State::Retired => Self::Retired,
            State::Failed(_) => Self::Failed,
        }
    }
}

/// The body and the response of `/admin/v1/log`: the levels of the log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogFilter {
    /// A level, or levels by target, such as `info,request=warn`.
    #[schemars(example = &"info")]
    pub filter: String,
}
