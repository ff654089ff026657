//! The catalogue: models, their versions, and which version answers a request.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::OpenEnum;
use super::schema;
use super::status::VersionState;
use guesthouse_artifact::{ArtifactMetadata, Digest};
use guesthouse_control::rollout::Share;
use guesthouse_model::{ModelName, Signature};

/// The response of `GET /models`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct ModelList {
    /// The models that the key may use.
    pub models: Vec<Model>,
}

/// A model with its versions and the routing of requests.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Model {
    /// The model.
    #[schemars(with = "schema::ModelName")]
    pub model: ModelName,
    /// The promoted version.
    #[schemars(with = "Option<schema::AnyVersion>")]
    pub stable: Option<Version>,
    /// The shares of candidates, in parts per million. The stable version has the rest.
    #[schemars(with = "BTreeMap<String, schema::Share>")]
    pub candidates: BTreeMap<Version, Share>,
    /// The versions, in ascending order.
    pub versions: Vec<ModelVersion>,
}

/// A version and its state.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct ModelVersion {
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// How far the version has come.
    pub state: OpenEnum<VersionState>,
    /// The step of loading that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_step: Option<String>,
    /// Whether a version that can serve is suspended because it keeps failing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<bool>,
}

/// The response of `GET /models/{model}/versions/{selector}`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct VersionDetails {
    /// The model.
    #[schemars(with = "schema::ModelName")]
    pub model: ModelName,
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// The digest of the artifact.
    #[schemars(with = "schema::Digest")]
    pub digest: Digest,
    /// Whether instances start from a snapshot of the initialised guest.
    pub snapshot: bool,
    /// The metadata of the component.
    #[schemars(with = "MetadataSchema")]
    pub metadata: ArtifactMetadata,
    /// The inputs and outputs.
    #[schemars(with = "SignatureSchema")]
    pub signature: Signature,
}

/// Stands for [`ArtifactMetadata`].
#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "a schema")]
struct MetadataSchema {
    description: Option<String>,
    licenses: Option<String>,
    authors: Option<String>,
    source: Option<String>,
    revision: Option<String>,
}

/// Stands for [`Signature`].
#[derive(JsonSchema)]
#[schemars(rename = "Signature")]
#[expect(dead_code, reason = "a schema")]
struct SignatureSchema {
    /// The inputs.
    inputs: Vec<FieldSchema>,
    /// The outputs.
    outputs: Vec<FieldSchema>,
    /// The most rows of one call of the guest.
    max_batch_size: u32,
}

/// An input or an output.
#[derive(JsonSchema)]
#[schemars(rename = "Field")]
#[expect(dead_code, reason = "a schema")]
struct FieldSchema {
    /// The name.
    name: String,
    /// The meaning, for people.
    description: String,
    /// The type of every element.
    datatype: schema::Datatype,
    /// The dimensions of one row; `null` for any size.
    row_shape: Vec<Option<u32>>,
    /// What an input must satisfy, or an output promises.
    constraints: Vec<Value>,
    /// The raw form of one row of an input that a caller may leave out.
    #[schemars(skip_serializing_if = "Option::is_none")]
    default: Option<Vec<u8>>,
}

/// The response of `GET /models/{model}/resolve`: which versions answer requests with a selector.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Resolution {
    /// The model.
    #[schemars(with = "schema::ModelName")]
    pub model: ModelName,
    /// The selector that was asked about.
    #[serde(default)]
    pub selector: Option<String>,
    /// The versions that answer such requests, with their shares.
    #[serde(default)]
    pub matches: Vec<Match>,
    /// The version that answers the caller; absent if it depends on the caller and none was named.
    #[serde(flatten)]
    pub choice: Option<Choice>,
}

/// A version that answers some of the requests.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Match {
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// Why requests are routed to it.
    #[schemars(with = "schema::RouteReason")]
    pub reason: String,
    /// Its share of the requests, in parts per million.
    #[schemars(with = "schema::Share")]
    pub share: Share,
}

/// The version that answers a caller.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Choice {
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// Why requests are routed to it.
    #[schemars(with = "schema::RouteReason")]
    pub reason: String,
    /// The caller's place in a split, from 0 to 999999; `null` without a key.
    #[serde(default)]
    pub place: Option<u32>,
}

/// The query of `GET /models/{model}/resolve`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveQuery {
    /// The selector in the path or header of a request.
    #[schemars(with = "Option<schema::Selector>")]
    pub selector: Option<String>,
    /// The caller's value of the model's sticky header or field.
    pub key: Option<String>,
}

/// The response of `GET /models/{model}/versions/{selector}/schema`: the JSON Schemas of predictions.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct VersionSchemas {
    /// The model.
    #[schemars(with = "schema::ModelName")]
    pub model: ModelName,
    /// The version.
    #[schemars(with = "schema::AnyVersion")]
    pub version: Version,
    /// The body of `predict`.
    #[schemars(with = "schema::Object")]
    pub request: Value,
    /// The response of `predict`.
    #[schemars(with = "schema::Object")]
    pub response: Value,
    /// The body of `batch_predict`.
    #[schemars(with = "schema::Object")]
    pub batch_request: Value,
    /// The response of `batch_predict`.
    #[schemars(with = "schema::Object")]
    pub batch_response: Value,
}
