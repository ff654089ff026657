//! Structured logs on standard error: JSON lines for machines, a readable form for terminals.
//!
//! What may be logged is decided where it is logged; the rule of the house is: never a key, never a
//! caller's input, never a raw path. Lines of guests have the target `guest`, the line of each
//! request the target `request`.
//!
//! A server writes its lines on a thread of their own, from a bounded queue: whoever reads the log
//! may stall without stalling a request. Lines over the bound are dropped and counted. Other
//! commands write at once, because nobody waits for them but the reader.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The variable that sets the levels, for this process and its children.
pub const FILTER_VARIABLE: &str = "GUESTHOUSE_LOG";

/// The variable that sets the form, for this process and its children.
pub const FORMAT_VARIABLE: &str = "GUESTHOUSE_LOG_FORMAT";

/// Lines that wait to be written. 8192 are a second of several thousand requests, some 4 MiB; of
/// guests that each fill a line with all they may log, 128 MiB.
const QUEUED_LINES: usize = 8192;

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Who writes a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// The thread that logs it, at once.
    Direct,
    /// A thread of its own, soon.
    Queued,
}

static CHOSEN: OnceLock<(String, Format)> = OnceLock::new();

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// How long the end of the process waits for lines that nobody may ever read.
const LAST_LINES_TIME: Duration = Duration::from_secs(2);

/// The end of the log: lines that still wait are written when this is dropped, or given up after
/// [`LAST_LINES_TIME`].
#[derive(Debug)]
#[must_use]
pub struct Logs(Option<(NonBlocking, WorkerGuard)>);

impl Logs {
    /// Where the last words of a command go: behind what it has logged.
    pub fn writer(&self) -> Box<dyn Write> {
        match &self.0 {
            Some((queue, _)) => Box::new(queue.clone()),
            None => Box::new(io::stderr()),
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let Some((_, guard)) = self.0.take() else {
            return;
        };
        // The guard gives up by itself, but says so on standard output, which may lead to the same
        // stalled reader. Its thread ends with the process.
        let (written, end) = mpsc::channel();
        std::thread::spawn(move || {
            drop(guard);
            // Nobody waits any more, if it took too long.
            let _ = written.send(());
        });
        let _ = end.recv_timeout(LAST_LINES_TIME);
    }
}

/// Log from now on. Without a format, a terminal gets text and anything else JSON.
///
/// # Errors
/// The filter cannot be understood.
pub fn start(filter: &str, format: Option<Format>, writing: Writing) -> Result<Logs, ParseError> {
    let levels = EnvFilter::builder().parse(filter)?;
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { Format::Text } else { Format::Json });
    let (logs, writer) = match writing {
        Writing::Direct => (Logs(None), BoxMakeWriter::new(io::stderr)),
        Writing::Queued => {
            let builder = NonBlockingBuilder::default().lossy(true);
            let builder = builder.buffered_lines_limit(QUEUED_LINES).thread_name("log");
            let (queue, guard) = builder.finish(io::stderr());
            let _ = DROPPED.set(queue.error_counter());
            (Logs(Some((queue.clone(), guard))), BoxMakeWriter::new(queue))
        }
    };
    let lines = tracing_subscriber::fmt().with_env_filter(levels).with_writer(writer);
    match format {
        Format::Json => lines.json().flatten_event(true).with_span_list(false).init(),
        Format::Text => lines.with_ansi(terminal).init(),
    }
    // A second start would have panicked in `init`.
    let _ = CHOSEN.set((filter.to_owned(), format));
    Ok(logs)
}

/// Log how many lines have been dropped, if they are more than the last time.
pub fn report_dropped(last: &mut usize) {
    let dropped = DROPPED.get().map_or(0, ErrorCounter::dropped_lines);
    if dropped > *last {
        // This line may be dropped itself; then the next one counts it.
        tracing::warn!(lines = dropped, "log lines were dropped: nobody read them in time");
        *last = dropped;
    }
}

/// The variables that make a child process log like this one.
pub fn environment() -> Vec<(&'static str, String)> {
    let Some((filter, format)) = CHOSEN.get() else {
        return Vec::new();
    };
    let format = match format {
        Format::Json => "json",
        Format::Text => "text",
    };
    vec![(FILTER_VARIABLE, filter.clone()), (FORMAT_VARIABLE, format.to_owned())]
}
