//! `guesthouse status`, `history` and `resolve`: commands that read.

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
    /// Only changes of this model.
    model: Option<ModelName>,
    /// The most entries to show.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArguments {
    /// The model.
    model: ModelName,
    /// The selector in the path of a request: `1.2.3`, `^1`, `stable`, `canary`.
    selector: Option<String>,
    /// The caller's value of the model's sticky header or field.
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
            Some(model) => show(&client.get(&format!("models/{model}"), &[])?, json, text::model),
            None => show(&client.get("status", &[])?, json, text::status),
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
        let response = Client::new(&arguments.server)?.get("history", &query)?;
        show(&response, arguments.server.json, text::history)
    };
    show_it().context("failed to show the history")
}

pub(super) fn resolve(arguments: &ResolveArguments) -> anyhow::Result<()> {
    let path = format!("models/{}/resolve", arguments.model);
    let query = [("selector", arguments.selector.clone()), ("key", arguments.key.clone())];
    let show_it = || {
        let response = Client::new(&arguments.server)?.get(&path, &query)?;
        show(&response, arguments.server.json, text::resolution)
    };
    show_it().with_context(|| format!("failed to resolve a version of {}", arguments.model))
}
