//! Escapes log lines, so that no value can start another line or control a terminal.
//!
//! Guests, artifacts and file names put untrusted text into messages and fields. It is escaped
//! here, for all lines alike, instead of where it is logged.

use std::fmt;

use tracing::field::Field;
use tracing::{Event, Subscriber};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{Format, Json, Writer, debug_fn};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use guesthouse_model::terminal::{printable, printable_json};

/// Format the fields of events and spans as text: the message, then `name=value`.
pub(super) fn escaped_fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(write_field).delimited(" ")
}

fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let (name, value) = (field.name(), printable(&format!("{value:?}")));
    if name == "message" {
        return writer.write_str(&value);
    }
    // The origin of records of the `log` crate; their target is shown already.
    if name.starts_with("log.") {
        return Ok(());
    }
    if writer.has_ansi_escapes() {
        // In italics, and a dim `=`.
        write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
    } else {
        write!(writer, "{name}={value}")
    }
}

/// JSON whose strings contain nothing that a terminal interprets. JSON itself only escapes
/// characters below the space.
pub(super) struct EscapedJson<T>(pub(super) Format<Json, T>);

impl<S, N, T> FormatEvent<S, N> for EscapedJson<T>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    T: FormatTime,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&printable_json(&line))
    }
}
