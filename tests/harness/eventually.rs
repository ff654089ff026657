//! Waiting for a condition: the one place where tests poll, sleep and give up.
//!
//! A test never asserts how long something takes: that depends on the machine, and benchmarks
//! measure it. It waits for a condition, and [`DEADLINE`] turns a condition that never holds into a
//! failure. A limit of the server that a test must not run into is set far beyond the deadline.

use std::thread;
use std::time::{Duration, Instant};

/// After this time a condition that does not hold is a failure. It is long enough to compile all
/// guests on a loaded machine, so it never decides about a correct server.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// The pause between two checks of a condition. It leaves the processor to the server, which may
/// be waiting for idle time.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls until `condition` holds.
///
/// # Panics
/// It does not hold before the [`DEADLINE`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(what, || condition().then_some(()));
}

/// Polls until `attempt` returns a value, and returns that value.
///
/// # Panics
/// It returns none until the [`DEADLINE`].
pub fn eventually_some<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}
