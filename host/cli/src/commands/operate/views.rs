//! `guesthouse status`, `history` and `resolve`: they change nothing.

use anyhow::Context as _;
use clap::Args;
use guesthouse_model::ModelName;

use super::client::Client;
use super::output::show;
use super::{ServerArguments, text};

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    /// Only this model.
    model: Option<ModelName>,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArguments {
    /// Only what was done to this model.
    model: Option<ModelName>,
    /// At most so many entries.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArguments {
    /// The model.
    model: ModelName,
    /// What the path of a request would say: `1.2.3`, `^1`, `stable`, `canary`.
    selector: Option<String>,
    /// The caller's value of the model's sticky header.
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    server: ServerArguments,
}

pub(super) fn status(arguments: &StatusArguments) -> anyhow::Result<()> {
    let show_it = || {
        let client = Client::new(&arguments.server)?;
        let json = arguments.server.json;
        match &arguments.model {
            Some(model) => show(&client.ask(&format!("models/{model}"), &[])?, json, text::model),
            None => show(&client.ask("status", &[])?, json, text::status),
        }
    };
    show_it().context("failed to show the status")
}

pub(super) fn history(arguments: &HistoryArguments) -> anyhow::Result<()> {
    let query = [
        ("model", arguments.model.as_ref().map(ToString::to_string)),
        ("limit", arguments.limit.map(|limit| limit.to_string())),
    ];
    let show_it = || {
        let answer = Client::new(&arguments.server)?.ask("history", &query)?;
        show(&answer, arguments.server.json, text::history)
    };
    show_it().context("failed to show the history")
}

pub(super) fn resolve(arguments: &ResolveArguments) -> anyhow::Result<()> {
    let path = format!("models/{}/resolve", arguments.model);
    let query = [("selector", arguments.selector.clone()), ("key", arguments.key.clone())];
    let show_it = || {
        let answer = Client::new(&arguments.server)?.ask(&path, &query)?;
        show(&answer, arguments.server.json, text::resolution)
    };
    show_it().with_context(|| format!("failed to resolve a version of {}", arguments.model))
}
