//! `guesthouse deploy`: an artifact is sent, and its way to being ready is followed to the end.
//!
//! The server works on, whatever becomes of this process or the connection; so a connection that is
//! lost is made again, and who follows waits as long as the server says that it works.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use super::answers::{Operation, OperationState, Step};
use super::client::{Answer, Change, Client, Content};
use super::failure::{OperateError, Refusal};
use super::upload::Upload;
use super::{ChangeArguments, ServerArguments, output, text};

/// How long the server holds an answer back while nothing happens.
const WAIT: Duration = Duration::from_secs(5);

/// Between two questions, also where the server does not hold anything back.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a server may be away: to start again with many versions.
const AWAY: Duration = Duration::from_secs(60);

/// Between two questions to a server that is away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct DeployArguments {
    /// The artifact.
    file: PathBuf,
    /// Make the version the stable one as soon as it is ready.
    #[arg(long)]
    promote: bool,
    #[command(flatten)]
    change: ChangeArguments,
    #[command(flatten)]
    server: ServerArguments,
}

pub(super) fn run(arguments: &DeployArguments) -> anyhow::Result<()> {
    deploy(arguments).with_context(|| format!("failed to deploy {}", arguments.file.display()))
}

fn deploy(arguments: &DeployArguments) -> Result<(), OperateError> {
    let json = arguments.server.json;
    let client = Client::new(&arguments.server)?;
    let upload = Upload::open(&arguments.file)?;
    let (key, mut query) = arguments.change.settle();
    query.push(("promote", arguments.promote.then(|| "true".to_owned())));
    let content = Content::Upload(&upload);
    let change = Change { path: "deploy".to_owned(), query, key, content };
    let answer = client.change(&change)?;
    if let Some(refusal) = answer.refusal() {
        if json {
            output::print_json(&answer.body)?;
        }
        return Err(output::refused(refusal, json));
    }
    let (mut answer, operation) = follow(&client, &change, answer, json)?;
    if json {
        output::print_json(&answer.body)?;
    }
    if operation.state == OperationState::Failed {
        return Err(output::refused(Refusal::of_operation(&operation.error), json));
    }
    match &operation.result {
        Some(_) if json => Ok(()),
        Some(deployed) => {
            // The answer to the upload came before this was known.
            answer.replayed |= deployed.replayed;
            output::print_lines(&answer, &text::deployed(deployed))
        }
        None => Err(answer.unexpected("a deployment that is done has no result")),
    }
}

/// The last answer about a deployment. Its steps are told as they come, unless a program listens.
fn follow(
    client: &Client,
    change: &Change<'_>,
    first: Answer,
    json: bool,
) -> Result<(Answer, Operation), OperateError> {
    let mut answer = first;
    let mut told = Told::default();
    loop {
        let operation: Operation = answer.parse()?;
        if !json {
            tell_steps(&operation.steps, &mut told);
        }
        if operation.state != OperationState::Running {
            return Ok((answer, operation));
        }
        let id = &operation.operation;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(answer.unexpected("the operation has no name for a path"));
        }
        thread::sleep(PAUSE);
        answer = ask(client, change, id)?;
    }
}

/// Ask what a deployment has come to, until there is an answer.
fn ask(client: &Client, change: &Change<'_>, id: &str) -> Result<Answer, OperateError> {
    let path = format!("operations/{id}");
    let query = [("wait_seconds", Some(WAIT.as_secs().to_string()))];
    let mut away_since = None;
    loop {
        let problem: Box<dyn std::error::Error + Send + Sync> =
            match client.ask_patiently(&path, &query, WAIT) {
                Ok(answer) => match answer.refusal() {
                    None => return Ok(answer),
                    Some(refusal) if answer.is_fault() => refusal.into(),
                    // Such as a server that has started again and forgotten it.
                    Some(refusal) => return Err(client.outcome_unknown(change, refusal.into())),
                },
                Err(error) => error.into(),
            };
        let since = *away_since.get_or_insert_with(|| {
            output::tell(&format!("{problem}; asking again for {} seconds", AWAY.as_secs()));
            Instant::now()
        });
        if since.elapsed() > AWAY {
            return Err(client.outcome_unknown(change, problem));
        }
        thread::sleep(AWAY_PAUSE);
    }
}

/// How many steps have been told of.
#[derive(Debug, Default)]
struct Told {
    begun: usize,
    ended: usize,
}

/// Tell the steps that are new, or that have come to their end. They come one after the other.
fn tell_steps(steps: &[Step], told: &mut Told) {
    for (at, Step { step, milliseconds }) in steps.iter().enumerate().skip(told.ended) {
        if let Some(milliseconds) = milliseconds {
            output::tell(&format!("{step:<9} {milliseconds:>7} ms"));
            told.ended = at + 1;
        } else if at >= told.begun {
            output::tell(&format!("{step:<9} …"));
            told.begun = at + 1;
        }
    }
}
