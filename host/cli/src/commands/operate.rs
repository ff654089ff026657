//! The commands that operate a running server. They know its admin API and nothing else of it.
//!
//! [`client`] carries requests and bounds them; [`answers`] is what the server says, [`text`] how
//! that reads for people; [`failure`] is what scripts decide by. The rest are the commands.

mod answers;
mod changes;
mod client;
mod deploy;
mod failure;
mod key;
mod keys;
mod output;
mod text;
mod trust;
mod upload;
mod views;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(crate) use failure::exit_code;

use self::client::{IdempotencyKey, ServerUrl};

#[derive(Debug, Subcommand)]
pub(crate) enum OperateCommand {
    /// Send an artifact to a running server, and wait until it is ready there.
    ///
    /// A model's first version is served at once, any other waits for `canary` or `promote`.
    Deploy(deploy::DeployArguments),
    /// Show which versions a running server has, in which state, and who gets which.
    Status(views::StatusArguments),
    /// Make a version the stable one.
    Promote(changes::PromoteArguments),
    /// Give a version a share of the requests; the stable one keeps the rest.
    Canary(changes::CanaryArguments),
    /// Let a version see requests that others answer, or show what came of it.
    Shadow(changes::ShadowArguments),
    /// End the rollout under way or, without one, go back to the version promoted before.
    Rollback(changes::RollbackArguments),
    /// Take a version that nothing is routed to off the server.
    Undeploy(changes::UndeployArguments),
    /// Make, list and revoke keys: who may ask for what.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Show who changed what, the newest first.
    History(views::HistoryArguments),
    /// Show which version would answer a request, and why.
    Resolve(views::ResolveArguments),
}

/// What every command takes.
#[derive(Debug, Args)]
struct ServerArguments {
    /// Where the server's admin API listens.
    #[arg(
        long,
        env = "GUESTHOUSE_ADMIN_SERVER",
        default_value = "http://127.0.0.1:8002",
        value_name = "URL"
    )]
    server: ServerUrl,
    /// PEM with the certificates that are trusted, where the server is reached by https: its own, or
    /// that of who signed it.
    #[arg(long, env = "GUESTHOUSE_ADMIN_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A private file with the admin key; without it, the key is in GUESTHOUSE_ADMIN_KEY.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Print the server's answer, in JSON.
    #[arg(long)]
    json: bool,
}

/// What every command takes that changes something.
#[derive(Debug, Args)]
struct ChangeArguments {
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Change nothing unless this is the model's revision; 0 is that of a model not yet known.
    #[arg(long, value_name = "N")]
    expected_revision: Option<u64>,
    /// What the server knows a repetition by: it is done once, however often it is asked for. A new
    /// one, if left out.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Change nothing, and say what would be changed.
    #[arg(long)]
    dry_run: bool,
}

impl ChangeArguments {
    /// The key of the change, and its query.
    fn settle(&self) -> (IdempotencyKey, Vec<(&'static str, Option<String>)>) {
        let Self { reason, expected_revision, idempotency_key, dry_run } = self;
        let query = vec![
            ("expected_revision", expected_revision.map(|revision| revision.to_string())),
            ("dry_run", dry_run.then(|| "true".to_owned())),
            ("reason", reason.clone()),
        ];
        (idempotency_key.clone().unwrap_or_else(IdempotencyKey::random), query)
    }

    /// Whether anything of it was given.
    fn given(&self) -> bool {
        let Self { reason, expected_revision, idempotency_key, dry_run } = self;
        reason.is_some() || expected_revision.is_some() || idempotency_key.is_some() || *dry_run
    }
}

pub(crate) fn run(command: &OperateCommand) -> anyhow::Result<()> {
    match command {
        OperateCommand::Deploy(arguments) => deploy::run(arguments),
        OperateCommand::Status(arguments) => views::status(arguments),
        OperateCommand::Promote(arguments) => changes::promote(arguments),
        OperateCommand::Canary(arguments) => changes::canary(arguments),
        OperateCommand::Shadow(arguments) => changes::shadow(arguments),
        OperateCommand::Rollback(arguments) => changes::rollback(arguments),
        OperateCommand::Undeploy(arguments) => changes::undeploy(arguments),
        OperateCommand::Keys(command) => keys::run(command),
        OperateCommand::History(arguments) => views::history(arguments),
        OperateCommand::Resolve(arguments) => views::resolve(arguments),
    }
}
