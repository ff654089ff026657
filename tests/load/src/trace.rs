//! A file with a line for each request, to be compared with what the server did meanwhile.
//!
//! A line is `SENT RECEIVED OUTCOME VERSION`: two times in nanoseconds of `CLOCK_MONOTONIC`, which
//! all processes of a machine share; the outcome as in a report, or `success`; and the response
//! header `X-Model-Version`, or `-`. A request is sent when a connection takes it, and received
//! when the response is complete or the request is given up. Lines are in the order of the second
//! time.
//!
//! Lines are written as they come, so the trace takes no memory. A write error ends the run with an
//! error, at its end.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::connection::RequestResult;

/// Enough for a second of most loads.
const BUFFER_BYTES: usize = 256 << 10;

/// The trace of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    file: BufWriter<File>,
    /// The same moment on both clocks, up to the time it takes to read one.
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
    pub(crate) fn write(&mut self, result: &RequestResult, sent: Instant, received: Instant) {
        if self.failed.is_none() {
            self.failed = self.try_write(result, sent, received).err();
        }
    }

    /// Flushes the file; returns the first error of any write.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.file.flush(),
        }
    }

    fn try_write(
        &mut self,
        result: &RequestResult,
        sent: Instant,
        received: Instant,
    ) -> io::Result<()> {
        let (sent, received) = (self.nanoseconds(sent), self.nanoseconds(received));
        write!(self.file, "{sent} {received} {} ", result.outcome.name())?;
        match &result.version {
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

/// The clock of traces: nanoseconds of `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
