//! A client of the admin API.
//!
//! A change is acknowledged if the server reports its success, rejected if the server reports an
//! error, and lost otherwise: then its outcome is unknown to the client.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use semver::Version;
use serde_json::{Value, json};

use super::artifacts::Model;
use super::client::{Client, TextResponse};

/// The admin key of `guesthouse serve --demo`.
pub(crate) const KEY: &str = "local-demo-admin-key";

/// The long-poll time of a deployment in seconds.
const WAIT_SECONDS: u32 = 20;

/// The time limit of a deployment, which may compile for minutes.
const DEPLOY_LIMIT: Duration = Duration::from_secs(1200);

/// The pause between polls, which return after each step.
const DEPLOY_PAUSE: Duration = Duration::from_millis(2);

/// All traffic, in parts per million.
pub(super) const WHOLE: u32 = 1_000_000;

/// A change of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mutation {
    Deploy {
        version: Version,
        /// In hexadecimal.
        digest: String,
        artifact: PathBuf,
    },
    Promote(Version),
    /// The weight is in parts per million.
    Canary(Version, u32),
    /// The share is in parts per million; none disables the shadow.
    Shadow(Option<(Version, u32)>),
    /// To this version, or by one step.
    Rollback(Option<Version>),
    Undeploy(Version),
}

impl Mutation {
    pub(super) fn deploy(model: &Model) -> Result<Self> {
        let version = parse_version(&model.version)?;
        let (digest, artifact) = (model.digest.clone(), model.artifact.clone());
        Ok(Self::Deploy { version, digest, artifact })
    }

    /// The kind of the change.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Deploy { .. } => "deploy",
            Self::Promote(_) => "promote",
            Self::Canary(..) => "canary",
            Self::Shadow(_) => "shadow",
            Self::Rollback(_) => "rollback",
            Self::Undeploy(_) => "undeploy",
        }
    }
}

/// The outcome of a change, as far as the client knows.
#[derive(Debug)]
pub(super) enum Reply {
    /// With the response body.
    Acknowledged(Value),
    Rejected(String),
    Lost(Error),
}

/// The admin API of a server.
#[derive(Clone)]
pub(super) struct Admin(Client);

impl Admin {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self(Client::new(address, KEY))
    }

    /// The description of a model; none if the server does not have it.
    pub(super) fn model(&self, model: &str) -> Result<Option<Value>> {
        let answer = self.0.get("/admin/v1/status")?;
        ensure!(answer.is_success(), "no status: {} {}", answer.status, answer.text);
        let status = answer.json()?;
        let models = status["models"].as_array().context("the status has no models")?;
        Ok(models.iter().find(|entry| entry["model"] == model).cloned())
    }

    /// Makes a change that must succeed.
    pub(super) fn make(&self, model: &str, mutation: &Mutation) -> Result<Value> {
        match self.apply(model, mutation) {
            Reply::Acknowledged(change) => Ok(change),
            Reply::Rejected(why) => bail!("{mutation:?} was rejected: {why}"),
            Reply::Lost(error) => Err(error.context(format!("{mutation:?} was lost"))),
        }
    }

    /// Makes a change; returns its outcome.
    pub(super) fn apply(&self, model: &str, mutation: &Mutation) -> Reply {
        self.try_apply(model, mutation).unwrap_or_else(Reply::Lost)
    }

    fn try_apply(&self, model: &str, mutation: &Mutation) -> Result<Reply> {
        let body = match mutation {
            Mutation::Deploy { artifact, .. } => return self.deploy(artifact),
            Mutation::Undeploy(version) => {
                let answer = self.0.delete(&format!("/admin/v1/models/{model}/versions/{version}"));
                return reply(&answer?);
            }
            Mutation::Promote(version) => json!({"version": version.to_string()}),
            Mutation::Canary(version, weight) => {
                json!({"version": version.to_string(), "weight": weight})
            }
            Mutation::Shadow(Some((version, share))) => {
                json!({"version": version.to_string(), "share": share})
            }
            Mutation::Shadow(None) => json!({"version": null}),
            Mutation::Rollback(Some(version)) => json!({"to": version.to_string()}),
            Mutation::Rollback(None) => json!({}),
        };
        let path = format!("/admin/v1/models/{model}/{}", mutation.kind());
        reply(&self.0.post(&path, &[], body.to_string().into_bytes())?)
    }

    fn deploy(&self, artifact: &PathBuf) -> Result<Reply> {
        let bytes = fs::read(artifact);
        let bytes = bytes.with_context(|| format!("cannot read {}", artifact.display()))?;
        let octets = [("content-type", "application/octet-stream")];
        let answer = self.0.post("/admin/v1/deploy", &octets, bytes)?;
        if !answer.is_success() {
            return reply(&answer);
        }
        let mut operation = answer.json()?;
        let id = operation["operation"].as_str().context("an operation has no id")?;
        let path = format!("/admin/v1/operations/{id}?wait_seconds={WAIT_SECONDS}");
        let start = Instant::now();
        while start.elapsed() < DEPLOY_LIMIT {
            match operation["state"].as_str() {
                Some("done") => return Ok(Reply::Acknowledged(operation["result"].take())),
                Some("failed") => return Ok(Reply::Rejected(operation["error"].to_string())),
                _ => {}
            }
            thread::sleep(DEPLOY_PAUSE);
            let answer = self.0.get(&path)?;
            ensure!(answer.is_success(), "the operation is unknown: {}", answer.text);
            operation = answer.json()?;
        }
        bail!("the deployment did not end in time")
    }
}

/// Parses a version.
pub(super) fn parse_version(text: &str) -> Result<Version> {
    text.parse().with_context(|| format!("`{text}` is not a version"))
}

fn reply(answer: &TextResponse) -> Result<Reply> {
    if answer.is_success() {
        return Ok(Reply::Acknowledged(answer.json()?));
    }
    Ok(Reply::Rejected(format!("{} {}", answer.status, answer.text)))
}
