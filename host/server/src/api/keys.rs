//! API keys that operators make, list and revoke. No body contains a key but the response to its
//! creation, once.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OpenEnum;
use super::schema;
use guesthouse_control::control;
use guesthouse_control::keys::{KeyName, KeyView, Scope, Scopes};
use guesthouse_control::rate;

/// The body of `POST /admin/v1/keys`.
// Its JSON form is part of the fingerprints of idempotent requests, which the ledger keeps.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKeyRequest {
    /// The name of the key. No two valid keys have the same.
    #[schemars(with = "schema::KeyName")]
    pub name: KeyName,
    /// What the key is good for: `predict:MODEL`, `predict:*` or `admin`.
    #[schemars(with = "schema::Scopes")]
    pub scopes: BTreeSet<Scope>,
    /// When the key expires: an RFC 3339 time, or a duration such as `90d`. Never by default.
    #[schemars(with = "Option<ExpirySchema>")]
    pub expires: Option<String>,
    /// How many predictions the key may request; by default, as `[rate_limit]` says.
    #[schemars(with = "Option<RateRequestSchema>")]
    pub rate: Option<rate::Rate>,
}

/// Stands for the times that [`guesthouse_control::keys::Timestamp::parse_expiry`] parses.
#[derive(JsonSchema)]
#[schemars(inline)]
#[expect(dead_code, reason = "a schema")]
struct ExpirySchema(#[schemars(regex(pattern = "^[1-9][0-9]{0,2}[dh]$"))] String);

/// How many predictions a key may request.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
#[expect(dead_code, reason = "a schema")]
struct RateRequestSchema {
    /// Predictions per second in the long run.
    #[schemars(range(min = 0.001, max = 1_000_000))]
    per_second: f64,
    /// Predictions at once; by default `per_second`, rounded up.
    #[schemars(range(min = 1, max = 1_000_000))]
    burst: Option<u32>,
}

/// The response of `GET /admin/v1/keys`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct KeyList {
    /// The keys of the configuration, then those made by operators.
    pub keys: Vec<Key>,
}

/// Everything about a key but the key itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Key {
    /// The id of the key; `null` if it is of the configuration, or of a dry run.
    #[serde(default)]
    pub id: Option<String>,
    /// The name of the key.
    pub name: String,
    /// What the key is good for.
    #[schemars(with = "schema::Scopes")]
    pub scopes: Vec<String>,
    /// Whether the key is valid.
    pub state: OpenEnum<KeyState>,
    /// When the key expires.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub expires: Option<String>,
    /// How many predictions the key may request, if it has a rate of its own.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Where the key comes from.
    pub source: OpenEnum<KeySource>,
    /// When the key was made.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub created: Option<String>,
    /// The name of the key with which it was made.
    #[serde(default)]
    pub created_by: Option<String>,
    /// When the key was revoked.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub revoked: Option<String>,
}

/// Whether a key is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum KeyState {
    /// It is valid.
    Active,
    /// It has expired.
    Expired,
    /// It was revoked.
    Revoked,
}

/// Where a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum KeySource {
    /// The configuration file.
    Configuration,
    /// An operator made it.
    Ledger,
}

/// How many predictions a key may request.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Rate {
    /// Predictions per second in the long run.
    pub per_second: f64,
    /// Predictions at once.
    pub burst: u32,
}

/// The response to a change of keys.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct KeyChange {
    /// The key after the change.
    pub key: Key,
    /// The revision of the change, or of the last one if nothing was changed.
    pub revision: u64,
    /// Whether anything is different.
    pub changed: bool,
    /// Whether it was a dry run.
    pub dry_run: bool,
    /// What was done.
    pub status: OpenEnum<KeyChangeStatus>,
    /// The key itself, in the response to its creation and never again.
    #[serde(default)]
    pub secret: Option<String>,
}

/// What a change of keys has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum KeyChangeStatus {
    /// A key was made.
    KeyCreated,
    /// A key was revoked.
    KeyRevoked,
}

/// The scopes as words.
pub(super) fn scope_words(scopes: Scopes) -> Vec<String> {
    BTreeSet::from(scopes).into_iter().map(String::from).collect()
}

impl From<KeyView> for Key {
    fn from(key: KeyView) -> Self {
        Self {
            id: key.id,
            name: key.name.to_string(),
            scopes: scope_words(key.scopes),
            state: OpenEnum::new(key.state),
            expires: key.expires.map(|time| time.to_string()),
            rate: key.rate.map(|rate| Rate { per_second: rate.per_second(), burst: rate.burst() }),
            source: OpenEnum::new(key.source),
            created: key.created.map(|time| time.to_string()),
            created_by: key.created_by,
            revoked: key.revoked.map(|time| time.to_string()),
        }
    }
}

impl From<control::KeyChangeReport> for KeyChange {
    fn from(change: control::KeyChangeReport) -> Self {
        Self {
            key: change.key.into(),
            revision: change.revision,
            changed: change.changed,
            dry_run: change.dry_run,
            status: OpenEnum::new(change.status),
            secret: change.secret,
        }
    }
}
