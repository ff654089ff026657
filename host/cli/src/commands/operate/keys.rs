//! `guesthouse keys`: who may ask for what. A key is printed once, alone on standard output, so that it
//! can be piped to where it is kept; everything else about it goes to standard error.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use guesthouse_control::keys::{self, KeyHash, KeyName, Scope, Scopes, Timestamp};
use guesthouse_control::rate::Rate;
use guesthouse_model::terminal::printable;
use serde_json::json;

use super::answers::KeyChange;
use super::client::{Answer, Change, Client, Content, IdempotencyKey};
use super::failure::OperateError;
use super::output::{self, show, tell};
use super::{ServerArguments, text};

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key, and print it: it is shown this once and kept nowhere.
    Create(CreateArguments),
    /// Show whose keys there are and what they are good for, but none of them.
    List(ListArguments),
    /// Take a key back: nobody is let in with it from now on.
    Revoke(RevokeArguments),
    /// Make a key without a server, and print it and the entry of the configuration that allows it.
    Generate(GenerateArguments),
}

/// What a key is to be.
#[derive(Debug, Args)]
struct KeyArguments {
    /// Whose key it is, in the log and in the history.
    name: KeyName,
    /// What it is good for: `predict:MODEL`, `predict:*` or `admin`; as often as needed.
    #[arg(long = "scope", value_name = "SCOPE", default_value = "predict:*")]
    scopes: Vec<Scope>,
    /// When it ends: `90d`, `12h`, or a time such as 2027-01-01T00:00:00Z.
    #[arg(long, value_name = "WHEN")]
    expires: Option<String>,
    /// How many predictions it may ask for per second, in the long run.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// And how many at once; as many as in a second, if left out.
    #[arg(long, value_name = "N", requires = "rate")]
    burst: Option<u32>,
}

impl KeyArguments {
    /// What can be wrong with them is wrong before anybody is asked.
    fn settle(&self) -> Result<(Scopes, Option<Timestamp>, Option<Rate>), OperateError> {
        let scopes = self.scopes.iter().cloned().collect::<std::collections::BTreeSet<_>>();
        let too_many = |_error| OperateError::Usage("a key has 1 to 64 scopes");
        let now = guesthouse_runtime::clock::now();
        let expires =
            self.expires.as_deref().map(|text| Timestamp::parse_expiry(text, now)).transpose();
        let no_time = |_error| {
            OperateError::Usage("--expires is a time to come, like 90d or 2027-01-01T00:00:00Z")
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

/// What every command takes that changes keys, which have no revisions.
#[derive(Debug, Args)]
struct KeyChangeArguments {
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// What the server knows a repetition by: it is done once, however often it is asked for. A new
    /// one, if left out.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<IdempotencyKey>,
    /// Change nothing, and say what would be changed.
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
    let (scopes, _, rate) = key.settle()?;
    // As it was written: with the same idempotency key it is the same request tomorrow.
    let body = json!({"name": key.name, "scopes": scopes, "expires": key.expires, "rate": rate});
    let answer = perform("keys".to_owned(), Content::Json(body), change, server)?;
    if answer.refusal().is_some() || server.json {
        show(&answer, server.json, text::key_change)?;
    }
    if answer.replayed {
        // Scripts must not take nothing for a key.
        let id = answer.parse::<KeyChange>()?.key.id.unwrap_or_default();
        return Err(OperateError::ShownBefore { id: printable(&id).to_string() });
    }
    if server.json {
        return Ok(());
    }
    let changed: KeyChange = answer.parse()?;
    text::key_change(&changed).iter().for_each(|line| tell(line));
    match changed.secret {
        Some(secret) => output::print_lines(&answer, &[secret]),
        None => Ok(()),
    }
}

fn list(arguments: &ListArguments) -> Result<(), OperateError> {
    let answer = Client::new(&arguments.server)?.ask("keys", &[])?;
    show(&answer, arguments.server.json, text::keys)
}

fn revoke(arguments: &RevokeArguments) -> Result<(), OperateError> {
    let RevokeArguments { id, change, server } = arguments;
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(OperateError::Usage("an id is letters and digits; `keys list` shows them"));
    }
    let answer = perform(format!("keys/{id}"), Content::Delete, change, server)?;
    show(&answer, server.json, text::key_change)
}

fn perform(
    path: String,
    content: Content<'_>,
    change: &KeyChangeArguments,
    server: &ServerArguments,
) -> Result<Answer, OperateError> {
    let KeyChangeArguments { reason, idempotency_key, dry_run } = change;
    let query = vec![("dry_run", dry_run.then(|| "true".to_owned())), ("reason", reason.clone())];
    let key = idempotency_key.clone().unwrap_or_else(IdempotencyKey::random);
    Client::new(server)?.change(&Change { path, query, key, content })
}

fn generate(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let (scopes, expires, rate) = arguments.key.settle()?;
    let key = keys::generate()?;
    let mut entry = vec![
        // Where it is appended, the last line may have no end.
        String::new(),
        "[[keys]]".to_owned(),
        format!("name = {}", json!(arguments.key.name)),
        format!("sha256 = {}", json!(KeyHash::from_key(key.as_bytes()))),
        format!("scopes = {}", json!(scopes)),
    ];
    entry.extend(expires.map(|expires| format!("expires = {}", json!(expires))));
    entry.extend(rate.map(|rate| format!("rate = {}", rate.to_toml())));
    entry.iter().for_each(|line| tell(line));
    output::print_line(&key)?;
    Ok(())
}
