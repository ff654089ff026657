//! Changes of what is served: requests, and responses.

use schemars::JsonSchema;
use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::OpenEnum;
use super::schema;
use super::status::{Routing, Shadow};
use guesthouse_control::control;
use guesthouse_control::rollout::{self, Share};
use guesthouse_control::shadow::PairReport;
use guesthouse_model::ModelName;

/// The query of every change.
// Its JSON form is part of the fingerprints of idempotent requests, which the ledger keeps.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeQuery {
    /// Reject the change unless this is the model's revision; 0 for a model that is not known yet.
    #[schemars(with = "Option<schema::Unsigned>")]
    pub expected_revision: Option<u64>,
    /// Check the change and report its outcome without making it.
    #[serde(default)]
    pub dry_run: bool,
    /// The reason for the change, for the history; at most 1024 bytes.
    pub reason: Option<String>,
    /// Of deployments only: whether the version becomes the stable one. By default, it does if it is the
    /// first of its model and not a pre-release.
    pub promote: Option<bool>,
}

/// The body of `POST /admin/v1/models/{model}/promote`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The version that becomes the stable one.
    #[schemars(with = "schema::Version")]
    pub version: Version,
    /// Whether to end a rollout of another version.
    #[serde(default)]
    pub supersede: bool,
}

/// The body of `POST /admin/v1/models/{model}/canary`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CanaryRequest {
    /// The version that gets a share of the requests.
    #[schemars(with = "schema::Version")]
    pub version: Version,
    /// The share: parts per million as a number, or a string with a unit.
    #[schemars(with = "schema::ShareWithUnit")]
    pub weight: Share,
    /// Whether to end a rollout of another version.
    #[serde(default)]
    pub supersede: bool,
}

/// The body of `POST /admin/v1/models/{model}/shadow`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
// A share needs a version.
#[schemars(extend("not" = {
    "required": ["share"],
    "properties": {"share": {"type": ["integer", "string"]}, "version": {"type": "null"}},
}))]
pub struct ShadowRequest {
    /// The version that sees requests which others answer; `null` ends the shadow.
    #[schemars(with = "Option<schema::Version>")]
    pub version: Option<Version>,
    /// Its share of the requests; all of them by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::ShareWithUnit>")]
    pub share: Option<Share>,
}

/// The body of `POST /admin/v1/models/{model}/rollback`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The version to go back to. By default, a rollout in progress ends; without one, the version
    /// promoted before becomes the stable one again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Version>")]
    pub to: Option<Version>,
}

/// An empty body, or an empty object.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmptyRequest {}

/// A response with the id of its request.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct WithRequestId<T> {
    #[serde(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub body: T,
    /// The id of the request, which its log line has as well.
    #[serde(default)]
    pub request_id: String,
}

/// The outcome of a change.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ModelChange {
    /// The model.
    #[schemars(with = "schema::ModelName")]
    pub model: ModelName,
    /// The model's revision after the change.
    pub revision: u64,
    /// Whether anything is different.
    pub changed: bool,
    /// Whether it was a dry run: `after` is what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// What was done.
    pub status: OpenEnum<ChangeStatus>,
    /// The routing before the change.
    #[serde(default)]
    #[schemars(with = "Routing")]
    pub before: Option<Routing>,
    /// The routing after the change.
    #[serde(default)]
    #[schemars(with = "Routing")]
    pub after: Option<Routing>,
}

/// What a change has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ChangeStatus {
    /// A version was deployed.
    Deployed,
    /// A version became the stable one.
    Promoted,
    /// A candidate got a share.
    Canary,
    /// A candidate replaced another one.
    Superseded,
    /// A shadow began or ended.
    Shadow,
    /// A rollout ended without promotion.
    Aborted,
    /// A version promoted before became the stable one again.
    RolledBack,
    /// A version was undeployed.
    Undeployed,
    /// The split of the configuration file took effect.
    Configured,
}

impl From<rollout::Status> for ChangeStatus {
    fn from(status: rollout::Status) -> Self {
        use rollout::Status;
        match status {
            Status::Deployed => Self::Deployed,
            Status::Promoted => Self::Promoted,
            Status::Canary => Self::Canary,
            Status::Superseded => Self::Superseded,
            Status::Shadow => Self::Shadow,
            Status::Aborted => Self::Aborted,
            Status::RolledBack => Self::RolledBack,
            Status::Undeployed => Self::Undeployed,
            Status::Configured => Self::Configured,
        }
    }
}

/// The outcome of the change, without what a deployment has found out.
impl From<&control::ChangeReport> for ModelChange {
    fn from(change: &control::ChangeReport) -> Self {
        Self {
            model: change.model.clone(),
            revision: change.revision,
            changed: change.changed,
            dry_run: change.dry_run,
            status: ChangeStatus::from(change.status).into(),
            before: Some(change.before.clone().into()),
            after: Some(change.after.clone().into()),
        }
    }
}

/// The response of `GET /admin/v1/models/{model}/shadow`: the results of comparing versions.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ShadowReport {
    /// The model.
    #[schemars(with = "schema::ModelName")]
    pub model: ModelName,
    /// The version that is compared now.
    pub shadow: Option<Shadow>,
    /// The results by candidate and primary.
    #[schemars(with = "Vec<ComparisonSchema>")]
    pub comparisons: Vec<PairReport>,
}

/// The results of comparing two versions.
#[derive(JsonSchema)]
#[schemars(rename = "Comparison")]
#[expect(dead_code, reason = "a schema")]
struct ComparisonSchema {
    /// The version that is compared.
    candidate: schema::AnyVersion,
    /// The version that answered.
    primary: schema::AnyVersion,
    /// The start of counting.
    since: schema::Time,
    /// The requests with two responses, or an error in place of the second.
    compared: u64,
    /// The rows that both have answered.
    rows: u64,
    /// The requests by result.
    results: ResultsSchema,
    /// The errors of the candidate by the kind of the fault.
    errors: std::collections::BTreeMap<String, u64>,
    /// The rows that differed, by output.
    outputs: std::collections::BTreeMap<String, DifferencesSchema>,
    /// The largest disagreements, the largest first.
    worst: Vec<DisagreementSchema>,
}

#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "a schema")]
struct ResultsSchema {
    /// Every output was within its tolerance.
    agreed: u64,
    /// Some output was not.
    differed: u64,
    /// The candidate failed.
    error: u64,
    /// Not compared, for want of time or room.
    dropped: u64,
    /// Not compared, because the candidate kept failing.
    skipped: u64,
    /// Not compared, because the candidate does not accept the inputs.
    incompatible: u64,
}

#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "a schema")]
struct DifferencesSchema {
    /// The numbers that differ by more than the tolerance.
    score: u64,
    /// The texts that differ.
    label: u64,
    /// The numbers of which one is not finite.
    nan: u64,
    /// The outputs of another shape.
    shape: u64,
    /// The largest difference of two numbers.
    largest_difference: f64,
}

#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "a schema")]
struct DisagreementSchema {
    /// When it was found.
    time: schema::Time,
    /// The id of the request.
    request_id: String,
    /// The SHA-256 of the inputs, in hexadecimal.
    input_sha256: String,
    /// The row in the request, from 0.
    row: Option<usize>,
    /// The output; `null` if the candidate failed.
    output: Option<String>,
    /// How the outputs differ.
    kind: String,
    /// The kind of the fault, if the candidate failed.
    fault: Option<String>,
    /// The difference of two numbers.
    difference: Option<f64>,
    /// The labels that differ.
    labels: Option<schema::Object>,
    /// The inputs and outputs, if the model's `shadow_capture` is on.
    captured: Option<schema::Object>,
}

/// A stored response: the change that a request with the same idempotency key has made before.
pub(crate) fn parse_stored<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    let value: Value = serde_json::from_str(text).ok()?;
    T::deserialize(value).ok()
}
