//! A limit on the CPU time of a part of the child's work, within the limit of the whole process.
//!
//! It works by a thread, and not by an interruption of the guest, because the guest may be in a
//! function of the host, and because code that can be interrupted is slower code.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::priority;

/// How often the time is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The work is limited until [`TimeLimit::end`].
#[must_use]
pub(super) struct TimeLimit {
    /// Set by whoever is first: the end of the work, or the end of the time.
    is_over: Arc<AtomicBool>,
    thread: Thread,
}

impl TimeLimit {
    /// Begin to count. When the process has had that much time on its processors, call `report` and
    /// end the process.
    pub(super) fn begin(
        time: Duration,
        report: impl FnOnce(Duration) + Send + 'static,
    ) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let latest = priority::process_time().saturating_add(time);
        let thread = thread::Builder::new().name("time-limit".to_owned()).spawn(move || {
            while priority::process_time() < latest {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                thread::park_timeout(LOOK_INTERVAL);
            }
            if !seen.swap(true, Ordering::SeqCst) {
                report(time);
                std::process::exit(1);
            }
        })?;
        Ok(Self { is_over, thread: thread.thread().clone() })
    }

    /// The work is done. Does not return if the time was over before.
    pub(super) fn end(self) {
        if self.is_over.swap(true, Ordering::SeqCst) {
            loop {
                // The process is about to end.
                thread::park();
            }
        }
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn work_that_ends_in_time_goes_on() {
        let (sender, receiver) = mpsc::channel::<()>();
        let limit = TimeLimit::begin(Duration::from_secs(3600), move |_time| drop(sender)).unwrap();
        limit.end();
        // The thread has ended without a report.
        assert!(receiver.recv().is_err());
    }
}
