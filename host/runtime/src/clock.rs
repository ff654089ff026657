//! The time of day, and identifiers that begin with it.
//!
//! Libraries that write a time as text, humantime and uuid among them, panic before 1970, and some after
//! 9999. A server does not start with such a clock ([`check`]); everything that asks for the time of day
//! asks [`now`], which is always in between.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::{NoContext, Timestamp, Uuid};

/// The first second that RFC 3339 cannot write, after 1970: the year 10000.
pub const MAX_UNIX_SECONDS: u64 = 253_402_300_800;

/// The clock of the machine is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "use the clock of this machine: it shows a time that is not between 1970 and 9999. Set it, or wait \
     for it to be set, before starting"
)]
pub struct ClockError;

/// Check that the clock shows a time that can be written down.
///
/// # Errors
/// [`ClockError`].
pub fn check() -> Result<(), ClockError> {
    let now = SystemTime::now();
    if bounded(now) == now { Ok(()) } else { Err(ClockError) }
}

/// The time of day; of a clock that is before 1970, the beginning of 1970, and of one that is after
/// 9999, its end.
pub fn now() -> SystemTime {
    bounded(SystemTime::now())
}

/// A version 7 UUID: unique, and in the order of time.
pub fn new_id() -> Uuid {
    if check().is_ok() {
        return Uuid::now_v7();
    }
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos()))
}

fn bounded(time: SystemTime) -> SystemTime {
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(MAX_UNIX_SECONDS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_written_down() {
        let long = Duration::from_secs(400 * 366 * 24 * 60 * 60);
        for time in [UNIX_EPOCH - long, UNIX_EPOCH - Duration::from_nanos(1)] {
            assert_eq!(bounded(time), UNIX_EPOCH);
        }
        let late = bounded(UNIX_EPOCH + 30 * long);
        assert_eq!(humantime::format_rfc3339_millis(late).to_string(), "9999-12-31T23:59:59.000Z");
        let now = SystemTime::now();
        assert_eq!((bounded(now), check()), (now, Ok(())));
        assert!(new_id() != new_id());
    }
}
