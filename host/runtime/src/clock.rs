//! The wall-clock time, and identifiers that start with it.
//!
//! Libraries that format times, such as humantime and uuid, panic before 1970, and some after 9999.
//! A server does not start with such a clock ([`check`]), and all code reads the time with [`now`],
//! which is always within these bounds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::{NoContext, Timestamp, Uuid};

/// The first second after 1970 that RFC 3339 cannot represent: the start of the year 10000.
pub const MAX_UNIX_SECONDS: u64 = 253_402_300_800;

/// The clock of the machine shows a time outside of the supported range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "use the clock of this machine: it shows a time that is not between 1970 and 9999. Set it, or wait \
     for it to be set, before starting"
)]
pub struct ClockError;

/// Check that the clock shows a time between 1970 and 9999.
///
/// # Errors
/// [`ClockError`].
pub fn check() -> Result<(), ClockError> {
    let now = SystemTime::now();
    if clamp(now) == now { Ok(()) } else { Err(ClockError) }
}

/// The current time, clamped to the range from 1970 to 9999.
pub fn now() -> SystemTime {
    clamp(SystemTime::now())
}

/// A new UUID of version 7: unique and ordered by time.
pub fn new_id() -> Uuid {
    if check().is_ok() {
        return Uuid::now_v7();
    }
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), since.subsec_nanos()))
}

fn clamp(time: SystemTime) -> SystemTime {
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(MAX_UNIX_SECONDS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_formatted() {
        let long = Duration::from_secs(400 * 366 * 24 * 60 * 60);
        for time in [UNIX_EPOCH - long, UNIX_EPOCH - Duration::from_nanos(1)] {
            assert_eq!(clamp(time), UNIX_EPOCH);
        }
        let late = clamp(UNIX_EPOCH + 30 * long);
        assert_eq!(humantime::format_rfc3339_millis(late).to_string(), "9999-12-31T23:59:59.000Z");
        let now = SystemTime::now();
        assert_eq!((clamp(now), check()), (now, Ok(())));
        assert!(new_id() != new_id());
    }
}
