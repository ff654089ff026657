//! A file with a line about each request, for those who know what the server did meanwhile.
//!
//! A line is `SENT ANSWERED OUTCOME VERSION`: two times in nanoseconds of `CLOCK_MONOTONIC`, which all
//! processes of a machine share; how the request ended, named as in a report, or `success`; what the
//! answer's header `X-Model-Version` says, or `-`. A request counts as sent when a connection takes
//! it and as answered when the whole answer is there; what had no answer was given up then. Lines
//! come in the order of the second time.
//!
//! Lines are written as they come, some forty bytes for each request, so that a trace takes no
//! memory; a file that cannot be written to ends the run with an error, at its end.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::connection::Answer;

/// What is written at once: enough for a second of most loads.
const BUFFER_BYTES: usize = 256 << 10;

/// The trace of a run under way.
#[derive(Debug)]
pub(crate) struct Trace {
    file: BufWriter<File>,
    /// The same moment on both clocks, but for the time that it takes to read one.
    start: Instant,
    start_ns: u64,
    failed: Option<io::Error>,
}

impl Trace {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
        let (start_ns, start) = (now_ns(), Instant::now());
        Ok(Self { file, start, start_ns, failed: None })
    }

    /// Writes the line of a request that was sent after the trace was created.
    pub(crate) fn write(&mut self, answer: &Answer, sent: Instant, received: Instant) {
        if self.failed.is_none() {
            self.failed = self.try_write(answer, sent, received).err();
        }
    }

    /// Writes what has not been written yet, and says what failed first.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.file.flush(),
        }
    }

    fn try_write(&mut self, answer: &Answer, sent: Instant, received: Instant) -> io::Result<()> {
        let (sent, received) = (self.nanoseconds(sent), self.nanoseconds(received));
        write!(self.file, "{sent} {received} {} ", answer.outcome.name())?;
        match &answer.version {
            Some(version) => self.file.write_all(version.as_bytes())?,
            None => self.file.write_all(b"-")?,
        }
        self.file.write_all(b"\n")
    }

    fn nanoseconds(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.start).as_nanos();
        self.start_ns.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// The clock of a trace: nanoseconds since some moment, the same for all processes of a machine.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
