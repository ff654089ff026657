//! `guesthouse keys`: API keys. A key is printed once, alone on standard output, so that it can be piped
//! to where it is stored; everything else about it goes to standard error.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use guesthouse_control::keys::{self, KeyHash, KeyName, Scope, Scopes, Timestamp};
use guesthouse_control::rate::Rate;
use guesthouse_model::terminal::printable;
use guesthouse_server::api::keys::{CreateKeyRequest, KeyChange};
use serde_json::json;

use super::client::{ChangeRequest, Client, Payload, ServerResponse};
use super::error::OperateError;
use super::idempotency_key::IdempotencyKey;
use super::output::{self, print_note, show};
use super::{ServerArguments, text};

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print it. It is shown this once and stored nowhere.
    Create(CreateArguments),
    /// List the keys by name with their scopes, without the keys themselves.
    List(ListArguments),
    /// Revoke a key. Requests with it are rejected at once.
    Revoke(RevokeArguments),
    /// Make a key without a server, and print it and its entry for the configuration.
    Generate(GenerateArguments),
}

/// The properties of a new key.
#[derive(Debug, Args)]
struct KeyArguments {
    /// The name of the key, in the log and in the history.
    name: KeyName,
    /// What the key is good for: `predict:MODEL`, `predict:*` or `admin`. May be repeated.
    #[arg(long = "scope", value_name = "SCOPE", default_value = "predict:*")]
    scopes: Vec<Scope>,
    /// When the key expires: `90d`, `12h`, or a time such as 2027-01-01T00:00:00Z.
    #[arg(long, value_name = "WHEN")]
    expires: Option<String>,
    /// The predictions per second that the key may request in the long run.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// The predictions that the key may request at once. By default, as many as in a second.
    #[arg(long, value_name = "N", requires = "rate")]
    burst: Option<u32>,
}

impl KeyArguments {
    /// Check the properties before anything is sent.
    fn validate(&self) -> Result<(Scopes, Option<Timestamp>, Option<Rate>), OperateError> {
        let scopes = self.scopes.iter().cloned().collect::<std::collections::BTreeSet<_>>();
        let too_many = |_error| OperateError::Usage("a key has 1 to 64 scopes");
        let now = guesthouse_runtime::clock::now();
        let expires =
            self.expires.as_deref().map(|text| Timestamp::parse_expiry(text, now)).transpose();
        let no_time = |_error| {
            OperateError::Usage("--expires is a future time, like 90d or 2027-01-01T00:00:00Z")
        };
        let rate = self.rate.map(|per_second| Rate::new(per_second, self.burst)).transpose();
        let no_rate = |_error| {
            OperateError::Usage("--rate is from 0.001 to 1000000, and --burst from 1 to 1000000")
        };
        Ok((
            scopes.try_into().map_err(too_many)?,
            expires.map_err(no_time)?,
            rate.map_err(no_rate)?,
        ))
    }
}

/// The arguments of commands that change keys, which have no revisions.
#[derive(Debug, Args)]
struct KeyChangeArguments {
    /// The reason for the change, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Identifies the change, so that a retry with the same key does not make it twice. A new key by
    /// default.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Change nothing, and show what would change.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    #[command(flatten)]
    key: KeyArguments,
    #[command(flatten)]
    change: KeyChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArguments {
    /// The key's id, as `keys list` shows it.
    id: String,
    #[command(flatten)]
    change: KeyChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArguments {
    #[command(flatten)]
    key: KeyArguments,
}

pub(super) fn run(command: &KeysCommand) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create(arguments) => create(arguments)
            .with_context(|| format!("failed to make a key for {}", arguments.key.name)),
        KeysCommand::List(arguments) => list(arguments).context("failed to list the keys"),
        KeysCommand::Revoke(arguments) => {
            revoke(arguments).with_context(|| format!("failed to revoke the key {}", arguments.id))
        }
        KeysCommand::Generate(arguments) => generate(arguments).context("failed to make a key"),
    }
}

fn create(arguments: &CreateArguments) -> Result<(), OperateError> {
    let CreateArguments { key, change, server } = arguments;
    let (scopes, _, rate) = key.validate()?;
    // `expires` as it was written, so that a retry tomorrow is the same request.
    let (name, expires) = (key.name.clone(), key.expires.clone());
    let body = CreateKeyRequest { name, scopes: scopes.into(), expires, rate };
    let response = perform("keys".to_owned(), Payload::json(&body), change, server)?;
    if response.error().is_some() || server.json {
        show(&response, server.json, text::key_change)?;
    }
    if response.is_replayed {
        // A script must not take empty output for a key.
        let id = response.parse::<KeyChange>()?.key.id.unwrap_or_default();
        return Err(OperateError::ShownBefore { id: printable(&id).to_string() });
    }
    if server.json {
        return Ok(());
    }
    let changed: KeyChange = response.parse()?;
    text::key_change(&changed).iter().for_each(|line| print_note(line));
    match changed.secret {
        Some(secret) => output::print_lines(&response, &[secret]),
        None => Ok(()),
    }
}

fn list(arguments: &ListArguments) -> Result<(), OperateError> {
    let response = Client::new(&arguments.server)?.get("keys", &[])?;
    show(&response, arguments.server.json, text::keys)
}

fn revoke(arguments: &RevokeArguments) -> Result<(), OperateError> {
    let RevokeArguments { id, change, server } = arguments;
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(OperateError::Usage("an id is letters and digits; `keys list` shows them"));
    }
    let response = perform(format!("keys/{id}"), Payload::Delete, change, server)?;
    show(&response, server.json, text::key_change)
}

fn perform(
    path: String,
    payload: Payload<'_>,
    change: &KeyChangeArguments,
    server: &ServerArguments,
) -> Result<ServerResponse, OperateError> {
    let KeyChangeArguments { reason, idempotency_key, dry_run } = change;
    let query = vec![("dry_run", dry_run.then(|| "true".to_owned())), ("reason", reason.clone())];
    let key = idempotency_key.clone().unwrap_or_else(IdempotencyKey::random);
    Client::new(server)?.change(&ChangeRequest { path, query, key, payload })
}

fn generate(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let (scopes, expires, rate) = arguments.key.validate()?;
    let key = keys::generate()?;
    let mut entry = vec![
        // The last line of the file that it is appended to may lack a line end.
        String::new(),
        "[[keys]]".to_owned(),
        format!("name = {}", json!(arguments.key.name)),
        format!("sha256 = {}", json!(KeyHash::from_key(key.as_bytes()))),
        format!("scopes = {}", json!(scopes)),
    ];
    entry.extend(expires.map(|expires| format!("expires = {}", json!(expires))));
    entry.extend(rate.map(|rate| format!("rate = {}", rate.to_toml())));
    entry.iter().for_each(|line| print_note(line));
    output::print_line(&key)?;
    Ok(())
}
