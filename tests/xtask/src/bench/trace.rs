//! Reads the trace of the load generator, and the clock that it shares with this program.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// A request, with times in nanoseconds of [`now_ns`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sent: u64,
    /// When the response was complete, or the request was given up.
    pub(super) answered: u64,
    /// Whether the response was the expected one.
    pub(super) is_success: bool,
    /// The version of the model that the response names.
    pub(super) version: Option<String>,
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// All requests of a trace, in the order of their responses.
pub(super) fn read(path: &Path) -> Result<Vec<Record>> {
    let cannot_read = || format!("cannot read {}", path.display());
    let file = BufReader::new(File::open(path).with_context(cannot_read)?);
    let mut records = Vec::new();
    for line in file.lines() {
        let line = line.with_context(cannot_read)?;
        records
            .push(parse(&line).with_context(|| format!("the trace has an invalid line `{line}`"))?);
    }
    Ok(records)
}

fn parse(line: &str) -> Option<Record> {
    let mut parts = line.splitn(4, ' ');
    let (sent, answered) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (is_success, version) = (parts.next()? == "success", parts.next()?);
    let version = Some(version).filter(|version| *version != "-").map(str::to_owned);
    Some(Record { sent, answered, is_success, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_lines_are_parsed_and_others_rejected() {
        let record = |is_success, version: Option<&str>| {
            let version = version.map(str::to_owned);
            Some(Record { sent: 12, answered: 34, is_success, version })
        };
        assert_eq!(parse("12 34 success 1.0.0"), record(true, Some("1.0.0")));
        assert_eq!(parse("12 34 503 2.0.0-beta"), record(false, Some("2.0.0-beta")));
        assert_eq!(parse("12 34 timeout -"), record(false, None));
        for cut in ["", "12 34 success", "12 success 1.0.0", "-1 2 success 1.0.0"] {
            assert_eq!(parse(cut), None, "{cut}");
        }
    }

    #[test]
    fn an_incomplete_trace_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "1 2 success 1.0.0\n3 4 503 -\n").unwrap();
        assert_eq!(read(file.path()).unwrap().len(), 2);
        std::fs::write(file.path(), "1 2 success 1.0.0\n3 4 5").unwrap();
        assert!(read(file.path()).is_err());
    }

    #[test]
    fn the_clock_advances() {
        let earlier = now_ns();
        assert!(earlier > 0 && now_ns() >= earlier);
    }
}
