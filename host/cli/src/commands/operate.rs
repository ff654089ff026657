//! The commands that operate a running server through its admin API.
//!
//! [`client`] sends requests, [`text`] renders the bodies of responses for people, and [`error`] decides
//! the exit codes. The other modules are the commands and their arguments.

pub(super) mod admin_key;
mod changes;
mod client;
mod deploy;
mod error;
mod idempotency_key;
mod keys;
mod output;
mod server_url;
mod text;
pub(super) mod trust;
mod upload;
mod views;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(super) use error::ServerError;
pub(crate) use error::exit_code;
pub(super) use server_url::ServerUrl;

use self::idempotency_key::IdempotencyKey;

#[derive(Debug, Subcommand)]
pub(crate) enum OperateCommand {
    /// Deploy an artifact to a running server, and wait until it is ready.
    ///
    /// The first version of a model is served at once. Any other waits for `canary` or `promote`.
    Deploy(deploy::DeployArguments),
    /// Show the versions of a running server, their states and the routing.
    Status(views::StatusArguments),
    /// Make a version the stable one.
    Promote(changes::PromoteArguments),
    /// Give a version a share of the requests. The stable version keeps the rest.
    Canary(changes::CanaryArguments),
    /// Compare a version with the one that answers, or show the results.
    Shadow(changes::ShadowArguments),
    /// End the rollout in progress or, without one, go back to the version promoted before.
    Rollback(changes::RollbackArguments),
    /// Remove a version that nothing is routed to.
    Undeploy(changes::UndeployArguments),
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Show the changes and who made them, the newest first.
    History(views::HistoryArguments),
    /// Show which version would answer a request, and why.
    Resolve(views::ResolveArguments),
}

/// The arguments of every command.
#[derive(Debug, Args)]
struct ServerArguments {
    /// The URL of the server's admin API.
    #[arg(
        long,
        env = "GUESTHOUSE_ADMIN_SERVER",
        default_value = "http://127.0.0.1:8002",
        value_name = "URL"
    )]
    server: ServerUrl,
    /// A PEM file with the certificates to trust when the URL is https: the server's own, or that of its
    /// issuer.
    #[arg(long, env = "GUESTHOUSE_ADMIN_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A private file with the admin key. Without it, the key is read from GUESTHOUSE_ADMIN_KEY.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Print the server's response in JSON.
    #[arg(long)]
    json: bool,
}

/// The arguments of every command that changes something.
#[derive(Debug, Args)]
struct ChangeArguments {
    /// The reason for the change, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Change nothing unless this is the model's revision; 0 for a model that is not known yet.
    #[arg(long, value_name = "N")]
    expected_revision: Option<u64>,
    /// Identifies the change, so that a retry with the same key does not make it twice. A new key by
    /// default.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Change nothing, and show what would change.
    #[arg(long)]
    dry_run: bool,
}

impl ChangeArguments {
    /// The idempotency key and the query of the change.
    fn key_and_query(&self) -> (IdempotencyKey, Vec<(&'static str, Option<String>)>) {
        let Self { reason, expected_revision, idempotency_key, dry_run } = self;
        let query = vec![
            ("expected_revision", expected_revision.map(|revision| revision.to_string())),
            ("dry_run", dry_run.then(|| "true".to_owned())),
            ("reason", reason.clone()),
        ];
        (idempotency_key.clone().unwrap_or_else(IdempotencyKey::random), query)
    }

    /// Whether any of the arguments was given.
    fn is_given(&self) -> bool {
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
