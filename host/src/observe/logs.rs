//! Structured logs on standard error: JSON lines for machines, a readable form for terminals.
//!
//! What may be logged is decided where it is logged; the rule of the house is: never a key, never a
//! caller's input, never a raw path. Lines of guests have the target `guest`, the line of each
//! request the target `request`.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The variable that sets the levels, for this process and its children.
pub const FILTER_VARIABLE: &str = "GUESTHOUSE_LOG";

/// The variable that sets the form, for this process and its children.
pub const FORMAT_VARIABLE: &str = "GUESTHOUSE_LOG_FORMAT";

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

static CHOSEN: OnceLock<(String, Format)> = OnceLock::new();

/// Log from now on. Without a format, a terminal gets text and anything else JSON.
///
/// # Errors
/// The filter cannot be understood.
pub fn start(filter: &str, format: Option<Format>) -> Result<(), ParseError> {
    let levels = EnvFilter::builder().parse(filter)?;
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { Format::Text } else { Format::Json });
    let lines = tracing_subscriber::fmt().with_env_filter(levels).with_writer(std::io::stderr);
    match format {
        Format::Json => lines.json().flatten_event(true).with_span_list(false).init(),
        Format::Text => lines.with_ansi(terminal).init(),
    }
    // A second start would have panicked in `init`.
    let _ = CHOSEN.set((filter.to_owned(), format));
    Ok(())
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
