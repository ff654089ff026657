//! A limit of CPU time for a part of the child's work, within the limit of the whole process.
//!
//! A thread enforces it instead of epoch interruption of the guest, because the guest may be in a
//! host function, and because interruptible code is slower.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::priority;

/// How often the CPU time is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A limit that is in force until [`CpuTimeLimit::end`].
#[must_use]
pub(super) struct CpuTimeLimit {
    /// Set when the work ends or the time is up, whichever comes first.
    is_over: Arc<AtomicBool>,
    thread: Thread,
}

impl CpuTimeLimit {
    /// Start the limit. When the process has used this much more CPU time, call `report` and exit
    /// the process.
    pub(super) fn begin(
        time: Duration,
        report: impl FnOnce(Duration) + Send + 'static,
    ) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let latest = priority::process_cpu_time().saturating_add(time);
        let thread = thread::Builder::new().name("time-limit".to_owned()).spawn(move || {
            while priority::process_cpu_time() < latest {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                thread::park_timeout(CHECK_INTERVAL);
            }
            if !seen.swap(true, Ordering::SeqCst) {
                report(time);
                std::process::exit(1);
            }
        })?;
        Ok(Self { is_over, thread: thread.thread().clone() })
    }

    /// End the limit. Does not return if the time was already up.
    pub(super) fn end(self) {
        if self.is_over.swap(true, Ordering::SeqCst) {
            loop {
                // The process is about to exit.
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
    fn work_within_the_limit_continues() {
        let (sender, receiver) = mpsc::channel::<()>();
        let limit =
            CpuTimeLimit::begin(Duration::from_secs(3600), move |_time| drop(sender)).unwrap();
        limit.end();
        // The thread ended without calling `report`.
        assert!(receiver.recv().is_err());
    }
}
