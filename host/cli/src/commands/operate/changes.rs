//! `guesthouse promote`, `canary`, `shadow`, `rollback` and `undeploy`: who gets which version.

use anyhow::Context as _;
use clap::Args;
use guesthouse_control::rollout::Share;
use guesthouse_model::ModelName;
use semver::Version;
use serde_json::{Value, json};

use super::client::{Change, Client, Content};
use super::failure::OperateError;
use super::output::show;
use super::{ChangeArguments, ServerArguments, text};

#[derive(Debug, Args)]
pub(crate) struct PromoteArguments {
    /// The model.
    model: ModelName,
    /// Its version that is to become the stable one.
    #[arg(value_name = "VERSION")]
    target: Version,
    /// Also if a rollout of another version is under way, which this ends.
    #[arg(long)]
    supersede: bool,
    #[command(flatten)]
    change: ChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct CanaryArguments {
    /// The model.
    model: ModelName,
    /// Its version that is to get a share.
    #[arg(value_name = "VERSION")]
    target: Version,
    /// The share, with its unit: `10%`, `100000ppm`, or a fraction such as `0.1`.
    #[arg(long, value_name = "SHARE")]
    weight: Share,
    /// Also if a rollout of another version is under way, which this ends.
    #[arg(long)]
    supersede: bool,
    #[command(flatten)]
    change: ChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ShadowArguments {
    /// The model.
    model: ModelName,
    /// Its version that is to see requests; without one, what came of the shadow is shown.
    #[arg(value_name = "VERSION")]
    target: Option<Version>,
    /// How many of the requests: `10%`, `100000ppm`, or a fraction such as `0.1`; all of them, if left
    /// out.
    #[arg(long, requires = "target")]
    share: Option<Share>,
    /// End the shadow.
    #[arg(long, conflicts_with = "target")]
    off: bool,
    #[command(flatten)]
    change: ChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArguments {
    /// The model.
    model: ModelName,
    /// The version to go back to; if left out, a rollout under way is ended, else the version
    /// promoted before is the stable one again.
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    #[command(flatten)]
    change: ChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct UndeployArguments {
    /// The model.
    model: ModelName,
    /// Its version that nobody needs any more.
    #[arg(value_name = "VERSION")]
    target: Version,
    #[command(flatten)]
    change: ChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

pub(super) fn promote(arguments: &PromoteArguments) -> anyhow::Result<()> {
    let PromoteArguments { model, target, supersede, change, server } = arguments;
    let body = json!({"version": target, "supersede": supersede});
    post(model, "promote", body, change, server)
        .with_context(|| format!("failed to promote {model}@{target}"))
}

pub(super) fn canary(arguments: &CanaryArguments) -> anyhow::Result<()> {
    let CanaryArguments { model, target, weight, supersede, change, server } = arguments;
    let body = json!({"version": target, "weight": weight, "supersede": supersede});
    post(model, "canary", body, change, server)
        .with_context(|| format!("failed to give {model}@{target} a share"))
}

pub(super) fn shadow(arguments: &ShadowArguments) -> anyhow::Result<()> {
    let ShadowArguments { model, target, share, off, change, server } = arguments;
    let body = match target {
        Some(target) => json!({"version": target, "share": share.unwrap_or(Share::ALL)}),
        None if *off => json!({"version": null}),
        None => {
            let what = || format!("failed to show the shadow of {model}");
            return report(model, change, server).with_context(what);
        }
    };
    post(model, "shadow", body, change, server)
        .with_context(|| format!("failed to change the shadow of {model}"))
}

pub(super) fn rollback(arguments: &RollbackArguments) -> anyhow::Result<()> {
    let RollbackArguments { model, to, change, server } = arguments;
    let body = to.as_ref().map_or_else(|| json!({}), |to| json!({"to": to}));
    post(model, "rollback", body, change, server)
        .with_context(|| format!("failed to roll {model} back"))
}

pub(super) fn undeploy(arguments: &UndeployArguments) -> anyhow::Result<()> {
    let UndeployArguments { model, target, change, server } = arguments;
    let path = format!("models/{model}/versions/{target}");
    perform(path, Content::Delete, change, server)
        .with_context(|| format!("failed to undeploy {model}@{target}"))
}

fn report(
    model: &ModelName,
    change: &ChangeArguments,
    server: &ServerArguments,
) -> Result<(), OperateError> {
    if change.given() {
        return Err(OperateError::Usage(
            "without a version or --off, nothing is changed, and options of changes mean nothing",
        ));
    }
    let answer = Client::new(server)?.ask(&format!("models/{model}/shadow"), &[])?;
    show(&answer, server.json, text::outline)
}

fn post(
    model: &ModelName,
    verb: &str,
    body: Value,
    change: &ChangeArguments,
    server: &ServerArguments,
) -> Result<(), OperateError> {
    perform(format!("models/{model}/{verb}"), Content::Json(body), change, server)
}

fn perform(
    path: String,
    content: Content<'_>,
    change: &ChangeArguments,
    server: &ServerArguments,
) -> Result<(), OperateError> {
    let (key, query) = change.settle();
    let answer = Client::new(server)?.change(&Change { path, query, key, content })?;
    show(&answer, server.json, text::change)
}
