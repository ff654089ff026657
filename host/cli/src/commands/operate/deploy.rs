//! `guesthouse deploy`: uploads an artifact, and polls the operation until it has ended.
//!
//! The server continues whatever happens to this process or the connection. So a lost connection is made
//! again, and the command waits as long as the server reports that the operation is running.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use guesthouse_server::api::operation::{Operation, OperationState, Step};

use super::client::{ChangeRequest, Client, Payload, ServerResponse};
use super::error::{OperateError, ServerError};
use super::upload::Upload;
use super::{ChangeArguments, ServerArguments, output, text};

/// How long the server holds a response back while there is no progress.
const WAIT: Duration = Duration::from_secs(5);

/// The delay between two polls, even if the server responds at once.
const POLL_DELAY: Duration = Duration::from_millis(100);

/// How long the server may be unreachable, such as during a restart with many versions.
const UNREACHABLE_TIME: Duration = Duration::from_secs(60);

/// The delay between two polls of an unreachable server.
const UNREACHABLE_DELAY: Duration = Duration::from_secs(1);

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
    let (key, mut query) = arguments.change.key_and_query();
    query.push(("promote", arguments.promote.then(|| "true".to_owned())));
    let payload = Payload::Upload(&upload);
    let change = ChangeRequest { path: "deploy".to_owned(), query, key, payload };
    let response = client.change(&change)?;
    if let Some(error) = response.error() {
        if json {
            output::print_json(&response.body)?;
        }
        return Err(output::rejected(error, json));
    }
    let (mut response, operation) = follow(&client, &change, response, json)?;
    if json {
        output::print_json(&response.body)?;
    }
    if operation.state == OperationState::Failed {
        let error = ServerError::from_operation(operation.error.as_ref());
        return Err(output::rejected(error, json));
    }
    match &operation.result {
        Some(_) if json => Ok(()),
        Some(deployed) => {
            // The response to the upload came before this was known.
            response.is_replayed |= deployed.replayed;
            output::print_lines(&response, &text::deployed(deployed))
        }
        None => Err(response.unexpected("a deployment that is done has no result")),
    }
}

/// Poll a deployment until it has ended, and return the last response. The steps are printed, unless the
/// output is JSON.
fn follow(
    client: &Client,
    change: &ChangeRequest<'_>,
    first: ServerResponse,
    json: bool,
) -> Result<(ServerResponse, Operation), OperateError> {
    let mut response = first;
    let mut printed = PrintedSteps::default();
    loop {
        let operation: Operation = response.parse()?;
        if !json {
            print_steps(&operation.steps, &mut printed);
        }
        if operation.state != OperationState::Running {
            return Ok((response, operation));
        }
        let id = &operation.operation;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(response.unexpected("the id of the operation is not valid in a path"));
        }
        thread::sleep(POLL_DELAY);
        response = poll(client, change, id)?;
    }
}

/// Read the progress of a deployment. Retries while the server is unreachable.
fn poll(
    client: &Client,
    change: &ChangeRequest<'_>,
    id: &str,
) -> Result<ServerResponse, OperateError> {
    let path = format!("operations/{id}");
    let query = [("wait_seconds", Some(WAIT.as_secs().to_string()))];
    let mut unreachable_since = None;
    loop {
        let problem: Box<dyn std::error::Error + Send + Sync> =
            match client.get_with_wait(&path, &query, WAIT) {
                Ok(response) => match response.error() {
                    None => return Ok(response),
                    Some(error) if response.is_server_fault() => error.into(),
                    // The server was restarted and does not know the operation any more.
                    Some(error) => return Err(client.outcome_unknown(change, error.into())),
                },
                Err(error) => error.into(),
            };
        let since = *unreachable_since.get_or_insert_with(|| {
            let seconds = UNREACHABLE_TIME.as_secs();
            output::print_note(&format!("{problem}; retrying for {seconds} seconds"));
            Instant::now()
        });
        if since.elapsed() > UNREACHABLE_TIME {
            return Err(client.outcome_unknown(change, problem));
        }
        thread::sleep(UNREACHABLE_DELAY);
    }
}

/// How many steps have been printed.
#[derive(Debug, Default)]
struct PrintedSteps {
    begun: usize,
    ended: usize,
}

/// Print the steps that have begun or ended since the last call. They run one after the other.
fn print_steps(steps: &[Step], printed: &mut PrintedSteps) {
    for (at, Step { step, milliseconds }) in steps.iter().enumerate().skip(printed.ended) {
        if let Some(milliseconds) = milliseconds {
            output::print_note(&format!("{step:<9} {milliseconds:>7} ms"));
            printed.ended = at + 1;
        } else if at >= printed.begun {
            output::print_note(&format!("{step:<9} …"));
            printed.begun = at + 1;
        }
    }
}
