//! `guesthouse predict`: predicts with an artifact in this process, or with a model of a server.
//!
//! [`rows`] reads what to predict for; [`local`] and [`remote`] predict, a call or a request for each
//! row, and [`curl`] prints the request instead. A row that is rejected does not stop the others; any
//! other failure does.

mod body;
mod curl;
mod local;
mod remote;
mod rows;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use guesthouse_model::terminal::printable_json;
use guesthouse_model::{ModelName, Selector};
use serde_json::{Value, json};

use self::rows::{FileInput, Row};
use super::exit_code::Failure;
use super::operate::ServerUrl;

#[derive(Debug, clap::Args)]
pub(crate) struct PredictArguments {
    /// The artifact to predict with, in this process.
    #[arg(conflicts_with = "server")]
    artifact: Option<PathBuf>,
    /// The URL of the server to predict with: of its public listener, such as http://127.0.0.1:8000.
    #[arg(long, value_name = "URL")]
    server: Option<ServerUrl>,
    /// The model of the server. By default, the server's default model.
    #[arg(long, value_name = "NAME", requires = "server")]
    model: Option<ModelName>,
    /// The version of the model: a version, a range such as ^1.2, or a channel. By default, the
    /// server's traffic split decides.
    #[arg(long, value_name = "SELECTOR", requires = "server")]
    version: Option<VersionSelector>,
    /// The rows: JSON objects with a value for each input, or @FILE for those of a file, @- for those of
    /// standard input. Without --json and --file, they are read from standard input.
    #[arg(long, value_name = "JSON")]
    json: Option<String>,
    /// A file for an input of bytes or text. If it is a folder, there is a row for each of its files, in the
    /// order of their names. May be repeated for other inputs.
    #[arg(long, value_name = "INPUT=PATH")]
    file: Vec<FileInput>,
    /// How long to wait for the outputs of a row, retries included: 500ms, 10s, 2m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    deadline: Duration,
    /// Print the requests as commands for curl instead of sending them. The key is only named, as the
    /// variable GUESTHOUSE_KEY.
    #[arg(long, requires = "server")]
    curl: bool,
    /// A private file with the key. Without it, the key is read from GUESTHOUSE_KEY.
    #[arg(long, value_name = "FILE", requires = "server")]
    key_file: Option<PathBuf>,
    /// A PEM file with the certificates to trust when the URL is https: the server's own, or that of its
    /// issuer.
    #[arg(long, value_name = "FILE", requires = "server")]
    ca: Option<PathBuf>,
    /// A state folder that keeps compiled code, so that the next start takes no time. No server may be
    /// using it. By default a temporary one.
    #[arg(long, value_name = "FOLDER", conflicts_with = "server")]
    state: Option<PathBuf>,
}

/// A selector as it was written, which is what the server receives.
#[derive(Debug, Clone)]
struct VersionSelector(String);

impl std::str::FromStr for VersionSelector {
    type Err = <Selector as std::str::FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Selector>().map(|_valid| Self(text.to_owned()))
    }
}

/// Why there are no outputs for a row.
#[derive(Debug)]
enum RowError {
    /// The row is not acceptable; others may be.
    Rejected { code: Option<String>, message: String },
    /// The server has no time for it.
    Busy(String),
    /// Nothing else will work either.
    Failed(anyhow::Error),
}

/// What predicts for rows.
trait Predict {
    fn predict(&mut self, row: &Row) -> Result<Value, RowError>;
}

pub(crate) fn run(arguments: &PredictArguments) -> anyhow::Result<()> {
    if arguments.deadline.is_zero() {
        return Err(Failure::Usage("--deadline must be longer than nothing".to_owned()).into());
    }
    if arguments.artifact.is_none() && arguments.server.is_none() {
        let reason = "name an artifact to predict with, or a server by --server";
        return Err(Failure::Usage(reason.to_owned()).into());
    }
    let rows = rows::open(arguments.json.as_deref(), &arguments.file)?;
    let Some(server) = &arguments.server else {
        return predict_all(&mut local::Model::open(arguments)?, rows);
    };
    if arguments.curl {
        for row in rows {
            print_line(&curl::command(server, arguments, &row?)?)?;
        }
        return Ok(());
    }
    predict_all(&mut remote::Client::new(server, arguments)?, rows)
}

fn predict_all(
    model: &mut impl Predict,
    rows: impl Iterator<Item = anyhow::Result<Row>>,
) -> anyhow::Result<()> {
    let (mut count, mut rejected) = (0_usize, 0_usize);
    let mut first = None;
    for row in rows {
        let row = row?;
        count += 1;
        match model.predict(&row) {
            Ok(outputs) => print_line(&row.label(outputs).to_string())?,
            // Every row has a line, so that the lines can be matched with the rows.
            Err(RowError::Rejected { code, message }) => {
                let error = json!({ "error": { "error_code": code, "message": message } });
                print_line(&row.label(error).to_string())?;
                rejected += 1;
                first.get_or_insert(message);
            }
            Err(RowError::Busy(message)) => return Err(Failure::Busy(message).into()),
            Err(RowError::Failed(error)) => return Err(error),
        }
    }
    let Some(first) = first else { return Ok(()) };
    let message = match count {
        1 => first,
        _ => format!("{rejected} of {count} rows are rejected, the first because: {first}"),
    };
    Err(Failure::Rejected(message).into())
}

fn print_line(line: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    let line = printable_json(line);
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Ok(()) => Ok(()),
        Err(error) => Err(error).context("the outputs could not be printed"),
    }
}
