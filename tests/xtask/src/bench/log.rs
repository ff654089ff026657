//! The log of a server under measurement, in a file.
//!
//! Reading a pipe would take processor time from the server. The file is read incrementally, and
//! the lines of the access log, of which a load writes a million, are skipped.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// How many lines of the log are shown if a server fails.
const TAIL_LINES: usize = 20;

/// Part of every line of the access log.
const REQUEST: &str = r#""target":"request""#;

/// The log of a server so far.
pub(super) struct Log {
    path: PathBuf,
    reader: BufReader<File>,
    /// A line that is not complete yet.
    begun: String,
    lines: Vec<Value>,
}

impl Log {
    /// Opens the log file of a server.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (path, reader) = (path.to_owned(), BufReader::new(file));
        Ok(Self { path, reader, begun: String::new(), lines: Vec::new() })
    }

    /// All complete lines except those of the access log and those that are not JSON.
    pub(super) fn lines(&mut self) -> Result<&[Value]> {
        let cannot_read = || format!("cannot read {}", self.path.display());
        while self.reader.read_line(&mut self.begun).with_context(cannot_read)? > 0 {
            if !self.begun.ends_with('\n') {
                break;
            }
            if !self.begun.contains(REQUEST) {
                self.lines.extend(serde_json::from_str::<Value>(&self.begun));
            }
            self.begun.clear();
        }
        Ok(&self.lines)
    }

    /// The first line with this message, and with this version if one is given.
    pub(super) fn find(&mut self, message: &str, version: Option<&str>) -> Result<Option<Value>> {
        let lines = self.lines()?.iter();
        let mut found = lines.filter(|line| {
            line["message"] == message && version.is_none_or(|version| line["version"] == version)
        });
        Ok(found.next().cloned())
    }

    /// The last lines of the log.
    pub(super) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// A number in a line. Integers of more than 64 bits are logged as strings.
pub(super) fn number(line: &Value, field: &str) -> Result<f64> {
    let number = match &line[field] {
        Value::String(text) => text.parse().ok(),
        number => number.as_f64(),
    };
    number.with_context(|| format!("a line of the log has no number `{field}`"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_is_read_incrementally() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut log = Log::open(file.path()).unwrap();
        let mut say = |text: &str| file.write_all(text.as_bytes()).unwrap();
        say(
            "no JSON\n{\"message\":\"a\",\"version\":\"1\",\"n\":\"80\"}\n{\"target\":\"request\"}\n",
        );
        say("{\"message\":\"a\",\"ver");
        assert_eq!(log.lines().unwrap().len(), 1);
        assert!(log.find("a", Some("2")).unwrap().is_none());
        say("sion\":\"2\",\"n\":80}\n");
        for version in ["1", "2"] {
            let line = log.find("a", Some(version)).unwrap().unwrap();
            assert!((number(&line, "n").unwrap() - 80.0).abs() < 1e-9);
        }
        assert_eq!(log.find("a", None).unwrap().unwrap()["version"], "1");
    }
}
