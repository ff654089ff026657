//! Deployments: long operations that are started and polled.

use schemars::JsonSchema;
use semver::Version;
use serde::{Deserialize, Serialize};

use super::change::ModelChange;
use super::error::ErrorBody;
use super::schema;
use guesthouse_artifact::Digest;
use guesthouse_control::control;

/// The response of `POST /admin/v1/deploy` and `GET /admin/v1/operations/{operation}`: the progress of a
/// deployment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// The id of the operation.
    pub operation: String,
    /// Whether it has ended, and how.
    pub state: OperationState,
    /// The steps so far.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What was deployed, once the operation is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Deployment>,
    /// Why the operation failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// Whether an operation has ended, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum OperationState {
    /// It is in progress.
    Running,
    /// It has succeeded.
    Done,
    /// It has failed.
    Failed,
}

/// A step of an operation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Step {
    /// The name of the step.
    pub step: String,
    /// How long it took; `null` while it is in progress.
    #[serde(default)]
    pub milliseconds: Option<u64>,
}

/// The outcome of a deployment.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Deployment {
    #[serde(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub change: ModelChange,
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// The digest of its artifact.
    #[schemars(with = "schema::Digest")]
    pub digest: Digest,
    /// How the version answers the golden examples of the version before it, if there is one.
    #[serde(default)]
    pub replay: Option<Replay>,
    /// Whether a request with the same idempotency key was made before, and this is its outcome.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

/// How a version answers the golden examples of another one.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Replay {
    /// The version whose examples they are.
    #[serde(default)]
    #[schemars(with = "schema::AnyVersion")]
    pub of: Option<Version>,
    /// The number of examples.
    pub examples: usize,
    /// A line for each example that has another result.
    #[serde(default)]
    pub differences: Vec<String>,
}

impl Deployment {
    /// The outcome of a change that was a deployment; `None` of any other.
    pub(crate) fn new(changed: &control::ChangeReport) -> Option<Self> {
        let control::DeployReport { version, digest, replay } = changed.deploy.clone()?;
        let replay = replay.map(|control::Replay { of, examples, differences }| Replay {
            of: Some(of),
            examples,
            differences,
        });
        Some(Self { change: changed.into(), version, digest, replay, replayed: false })
    }
}

/// The query of `GET /admin/v1/operations/{operation}`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationQuery {
    /// How long the response may be held back until the operation makes progress; at most 30.
    #[schemars(with = "Option<schema::Unsigned>")]
    pub wait_seconds: Option<u64>,
}
