//! `guesthouse promote`, `canary`, `shadow`, `rollback` and `undeploy`: changes of routing.

use anyhow::Context as _;
use clap::Args;
use guesthouse_control::rollout::Share;
use guesthouse_model::ModelName;
use guesthouse_server::api::change::{
    CanaryRequest, PromoteRequest, RollbackRequest, ShadowRequest,
};
use semver::Version;
use serde::Serialize;

use super::client::{ChangeRequest, Client, Payload};
use super::error::OperateError;
use super::output::show;
use super::{ChangeArguments, ServerArguments, text};

#[derive(Debug, Args)]
pub(crate) struct PromoteArguments {
    /// The model.
    model: ModelName,
    /// The version that becomes the stable one.
    #[arg(value_name = "VERSION")]
    target: Version,
    /// End a rollout of another version that is in progress.
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
    /// The version that gets a share.
    #[arg(value_name = "VERSION")]
    target: Version,
    /// The share, with its unit: `10%`, `100000ppm`, or a fraction such as `0.1`.
    #[arg(long, value_name = "SHARE")]
    weight: Share,
    /// End a rollout of another version that is in progress.
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
    /// The version that sees requests. Without it, the results of the shadow are shown.
    #[arg(value_name = "VERSION")]
    target: Option<Version>,
    /// The share of requests that it sees: `10%`, `100000ppm`, or a fraction such as `0.1`. All by
    /// default.
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
    /// The version to go back to. By default, a rollout in progress ends; without one, the version
    /// promoted before becomes the stable one again.
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
    /// The version to remove. Nothing may be routed to it.
    #[arg(value_name = "VERSION")]
    target: Version,
    #[command(flatten)]
    change: ChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

pub(super) fn promote(arguments: &PromoteArguments) -> anyhow::Result<()> {
    let PromoteArguments { model, target, supersede, change, server } = arguments;
    let body = PromoteRequest { version: target.clone(), supersede: *supersede };
    post(model, "promote", &body, change, server)
        .with_context(|| format!("failed to promote {model}@{target}"))
}

pub(super) fn canary(arguments: &CanaryArguments) -> anyhow::Result<()> {
    let CanaryArguments { model, target, weight, supersede, change, server } = arguments;
    let (version, weight, supersede) = (target.clone(), *weight, *supersede);
    let body = CanaryRequest { version, weight, supersede };
    post(model, "canary", &body, change, server)
        .with_context(|| format!("failed to give {model}@{target} a share"))
}

pub(super) fn shadow(arguments: &ShadowArguments) -> anyhow::Result<()> {
    let ShadowArguments { model, target, share, off, change, server } = arguments;
    let body = match target {
        Some(target) => {
            let share = Some(share.unwrap_or(Share::ALL));
            ShadowRequest { version: Some(target.clone()), share }
        }
        None if *off => ShadowRequest { version: None, share: None },
        None => {
            let what = || format!("failed to show the shadow of {model}");
            return report(model, change, server).with_context(what);
        }
    };
    post(model, "shadow", &body, change, server)
        .with_context(|| format!("failed to change the shadow of {model}"))
}

pub(super) fn rollback(arguments: &RollbackArguments) -> anyhow::Result<()> {
    let RollbackArguments { model, to, change, server } = arguments;
    let body = RollbackRequest { to: to.clone() };
    post(model, "rollback", &body, change, server)
        .with_context(|| format!("failed to roll {model} back"))
}

pub(super) fn undeploy(arguments: &UndeployArguments) -> anyhow::Result<()> {
    let UndeployArguments { model, target, change, server } = arguments;
    let path = format!("models/{model}/versions/{target}");
    perform(path, Payload::Delete, change, server)
        .with_context(|| format!("failed to undeploy {model}@{target}"))
}

fn report(
    model: &ModelName,
    change: &ChangeArguments,
    server: &ServerArguments,
) -> Result<(), OperateError> {
    if change.is_given() {
        return Err(OperateError::Usage(
            "without a version or --off, nothing is changed, so options of changes have no meaning",
        ));
    }
    let response = Client::new(server)?.get(&format!("models/{model}/shadow"), &[])?;
    show(&response, server.json, text::outline)
}

fn post(
    model: &ModelName,
    verb: &str,
    body: &impl Serialize,
    change: &ChangeArguments,
    server: &ServerArguments,
) -> Result<(), OperateError> {
    let payload = Payload::json(body);
    perform(format!("models/{model}/{verb}"), payload, change, server)
}

fn perform(
    path: String,
    payload: Payload<'_>,
    change: &ChangeArguments,
    server: &ServerArguments,
) -> Result<(), OperateError> {
    let (key, query) = change.key_and_query();
    let response = Client::new(server)?.change(&ChangeRequest { path, query, key, payload })?;
    show(&response, server.json, text::change)
}
