//! Structured logs on standard error: JSON lines for machines, a readable form for terminals.
//!
//! The code that logs decides what is logged. The rule is: never a key, a caller's input or a raw
//! path. Lines of guests have the target `guest`, and the line of each request has the target
//! `request`.
//!
//! A server writes its lines on a separate thread, from a bounded queue, so that a stalled reader
//! of the log does not stall requests. Lines beyond the bound are dropped and counted. Other
//! commands write directly.
//!
//! The filter can be changed while the server runs, up to `trace` for this program's own targets.
//! Of libraries, only errors are ever logged, whatever the filter, because their other messages
//! quote requests. The module `filter` defines the syntax of filters, `line` how lines are escaped.

mod filter;
mod line;

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{FilterExt as _, FilterFn, Targets, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

pub use self::filter::FilterError;
use self::line::{EscapedJson, escaped_fields};

/// The environment variable with the filter, for this process and its children.
pub const FILTER_VARIABLE: &str = "GUESTHOUSE_LOG";

/// The environment variable with the format, for this process and its children.
pub const FORMAT_VARIABLE: &str = "GUESTHOUSE_LOG_FORMAT";

/// The most lines that wait to be written: a second of several thousand requests, some 4 MiB; or
/// 128 MiB, if each line has the most bytes that a guest may log.
const QUEUED_LINES: usize = 8192;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line
    Json,
    /// Text for people
    Text,
}

/// Which thread writes log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// The logging thread, synchronously.
    Direct,
    /// A separate thread, from a queue.
    Queued,
}

/// This program's own targets, besides its modules.
const TARGETS: [&str; 5] = ["request", "fault", "guest", "traffic", "change"];

/// The crates of this program, whose modules are the targets of all other lines.
const CRATES: [&str; 6] = [
    "guesthouse",
    "guesthouse_artifact",
    "guesthouse_control",
    "guesthouse_model",
    "guesthouse_runtime",
    "guesthouse_server",
];

static SETTINGS: OnceLock<LogSettings> = OnceLock::new();

/// The settings of the log.
struct LogSettings {
    filter: Mutex<String>,
    format: LogFormat,
    levels: reload::Handle<Targets, Registry>,
}

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// How long the exit of the process waits for the remaining lines to be written.
const LAST_LINES_TIME: Duration = Duration::from_secs(2);

/// Flushes the log when it is dropped, for at most [`LAST_LINES_TIME`].
#[derive(Debug)]
#[must_use]
pub struct LogGuard(Option<(NonBlocking, WorkerGuard)>);

impl LogGuard {
    /// A writer for the final message of a command, after what it has logged.
    pub fn writer(&self) -> Box<dyn Write> {
        match &self.0 {
            Some((queue, _)) => Box::new(queue.clone()),
            None => Box::new(io::stderr()),
        }
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let Some((_, guard)) = self.0.take() else {
            return;
        };
        // The guard times out by itself, but then prints to standard output, which may have the
        // same stalled reader. The thread ends with the process.
        let (written, end) = mpsc::channel();
        std::thread::spawn(move || {
            drop(guard);
            // The receiver may have timed out.
            let _ = written.send(());
        });
        let _ = end.recv_timeout(LAST_LINES_TIME);
    }
}

/// Initialise the log. Without a format, a terminal gets text and anything else JSON.
///
/// # Errors
/// [`FilterError`], if the filter is invalid.
pub fn init(
    filter: &str,
    format: Option<LogFormat>,
    writing: WriteMode,
) -> Result<LogGuard, FilterError> {
    let (levels, handle) = reload::Layer::new(filter::parse(filter)?);
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let (logs, writer) = match writing {
        WriteMode::Direct => (LogGuard(None), BoxMakeWriter::new(io::stderr)),
        WriteMode::Queued => {
            let builder = NonBlockingBuilder::default().lossy(true);
            let builder = builder.buffered_lines_limit(QUEUED_LINES).thread_name("log");
            let (queue, guard) = builder.finish(io::stderr());
            let _ = DROPPED.set(queue.error_counter());
            (LogGuard(Some((queue.clone(), guard))), BoxMakeWriter::new(queue))
        }
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false);
            lines.map_event_format(EscapedJson).boxed()
        }
        LogFormat::Text => lines.with_ansi(terminal).fmt_fields(escaped_fields()).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(levels.and(quiet_libraries()))).init();
    // A second call would have panicked in `init`.
    let _ =
        SETTINGS.set(LogSettings { filter: Mutex::new(filter.to_owned()), format, levels: handle });
    Ok(logs)
}

/// Log this program's own targets, and of libraries only errors. Their other messages are made for
/// debugging and contain what callers have sent: frames, headers, names of servers.
fn quiet_libraries() -> FilterFn {
    filter_fn(|metadata| is_ours(metadata.target()) || is_error(metadata))
}

fn is_ours(target: &str) -> bool {
    TARGETS.contains(&target) || CRATES.contains(&target.split("::").next().unwrap_or_default())
}

fn is_error(metadata: &Metadata<'_>) -> bool {
    *metadata.level() == Level::ERROR
}

/// The current filter; `None` if the log is not initialised.
pub fn filter() -> Option<String> {
    let settings = SETTINGS.get()?;
    Some(settings.filter.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Change the filter, also for children that are started later.
///
/// # Errors
/// [`FilterError`]; the filter is then unchanged.
pub fn set_filter(filter: &str) -> Result<(), FilterError> {
    let levels = filter::parse(filter)?;
    let settings = SETTINGS.get().ok_or(FilterError::NoLog)?;
    // Held until the filter is in force, so that both agree.
    let mut current = settings.filter.lock().unwrap_or_else(PoisonError::into_inner);
    settings.levels.reload(levels).map_err(|_gone| FilterError::NoLog)?;
    filter.clone_into(&mut current);
    Ok(())
}

/// The number of lines that were dropped because the log was not read in time.
pub fn dropped() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Log the number of dropped lines if it has increased.
pub fn report_dropped(last: &mut usize) {
    let dropped = dropped();
    if dropped > *last {
        // If this line is dropped as well, the next one counts it.
        tracing::warn!(lines = dropped, "log lines were dropped: nobody read them in time");
        *last = dropped;
    }
}

/// The environment variables that make a child process log like this one.
pub fn child_environment() -> Vec<(&'static str, String)> {
    let (Some(settings), Some(filter)) = (SETTINGS.get(), filter()) else {
        return Vec::new();
    };
    let format = match settings.format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    };
    vec![(FILTER_VARIABLE, filter), (FORMAT_VARIABLE, format.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_libraries_are_recognised() {
        for ours in ["guesthouse", "guesthouse_server::edge::predict", "request", "fault", "guest"]
        {
            assert!(is_ours(ours), "{ours}");
        }
        for other in ["hyper::proto::h1", "h2", "guesthouse_guest", "requests", "rustls::conn", ""]
        {
            assert!(!is_ours(other), "{other}");
        }
    }
}
