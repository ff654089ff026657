//! Structured logs on standard error: JSON lines for machines, a readable form for terminals.
//!
//! What may be logged is decided where it is logged; the rule of the house is: never a key, never a
//! caller's input, never a raw path. Lines of guests have the target `guest`, the line of each
//! request the target `request`.
//!
//! A server writes its lines on a thread of their own, from a bounded queue: whoever reads the log
//! may stall without stalling a request. Lines over the bound are dropped and counted. Other
//! commands write at once, because nobody waits for them but the reader.
//!
//! The levels can be changed while the server runs, up to `trace` for everything of ours. Of the
//! libraries below, only errors are ever logged, whatever the filter says: what they write at other
//! levels quotes requests. The module `filter` says which filters there are, `line` how a line is
//! escaped.

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

/// The variable that sets the levels, for this process and its children.
pub const FILTER_VARIABLE: &str = "GUESTHOUSE_LOG";

/// The variable that sets the form, for this process and its children.
pub const FORMAT_VARIABLE: &str = "GUESTHOUSE_LOG_FORMAT";

/// Lines that wait to be written. 8192 are a second of several thousand requests, some 4 MiB; of
/// guests that each fill a line with all they may log, 128 MiB.
const QUEUED_LINES: usize = 8192;

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Who writes a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// The thread that logs it, at once.
    Direct,
    /// A thread of its own, soon.
    Queued,
}

/// The targets of lines that are ours, beside the modules of this crate.
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

static CHOSEN: OnceLock<Chosen> = OnceLock::new();

/// How this process logs.
struct Chosen {
    filter: Mutex<String>,
    format: LogFormat,
    levels: reload::Handle<Targets, Registry>,
}

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// How long the end of the process waits for lines that nobody may ever read.
const LAST_LINES_TIME: Duration = Duration::from_secs(2);

/// The end of the log: lines that still wait are written when this is dropped, or given up after
/// [`LAST_LINES_TIME`].
#[derive(Debug)]
#[must_use]
pub struct LogGuard(Option<(NonBlocking, WorkerGuard)>);

impl LogGuard {
    /// Where the last words of a command go: behind what it has logged.
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
/// [`FilterError`], if the filter is refused.
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
    // A second start would have panicked in `init`.
    let _ = CHOSEN.set(Chosen { filter: Mutex::new(filter.to_owned()), format, levels: handle });
    Ok(logs)
}

/// What is ours, and of the libraries what has gone wrong. Their other lines are made for those who
/// debug them, and hold whatever a caller has sent: frames, headers, names of servers.
fn quiet_libraries() -> FilterFn {
    filter_fn(|metadata| is_ours(metadata.target()) || is_error(metadata))
}

fn is_ours(target: &str) -> bool {
    TARGETS.contains(&target) || CRATES.contains(&target.split("::").next().unwrap_or_default())
}

fn is_error(metadata: &Metadata<'_>) -> bool {
    *metadata.level() == Level::ERROR
}

/// What is logged now; nothing, if there is no log.
pub fn filter() -> Option<String> {
    let chosen = CHOSEN.get()?;
    Some(chosen.filter.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Log by this filter from now on, children that are started from now on included.
///
/// # Errors
/// [`FilterError`]; then everything is as it was.
pub fn set_filter(filter: &str) -> Result<(), FilterError> {
    let levels = filter::parse(filter)?;
    let chosen = CHOSEN.get().ok_or(FilterError::NoLog)?;
    // Held until the other is in force as well, so that they agree.
    let mut current = chosen.filter.lock().unwrap_or_else(PoisonError::into_inner);
    chosen.levels.reload(levels).map_err(|_gone| FilterError::NoLog)?;
    filter.clone_into(&mut current);
    Ok(())
}

/// How many lines have been dropped because nobody read the log in time.
pub fn dropped() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Log how many lines have been dropped, if they are more than the last time.
pub fn report_dropped(last: &mut usize) {
    let dropped = dropped();
    if dropped > *last {
        // This line may be dropped itself; then the next one counts it.
        tracing::warn!(lines = dropped, "log lines were dropped: nobody read them in time");
        *last = dropped;
    }
}

/// The variables that make a child process log like this one.
pub fn environment() -> Vec<(&'static str, String)> {
    let (Some(chosen), Some(filter)) = (CHOSEN.get(), filter()) else {
        return Vec::new();
    };
    let format = match chosen.format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
    };
    vec![(FILTER_VARIABLE, filter), (FORMAT_VARIABLE, format.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_not_ours() {
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
