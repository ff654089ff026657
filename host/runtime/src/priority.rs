//! How urgent the kernel takes a thread to be, and what it has given to it.

use std::time::Duration;

/// Run when nobody else wants to. Whoever wakes up runs at once, which no niceness has as its effect:
/// the kernel lets a nice process finish its slice of a few milliseconds. Holds for the calling
/// thread, and for the threads and processes that it starts.
///
/// # Errors
/// The system does not let it.
pub fn use_idle_scheduling() -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live as long as the call, which reads them and nothing else.
    #[expect(unsafe_code, reason = "no safe library knows this call")]
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The niceness of threads whose work may wait for that of others but has to be done while processors are
/// busy, too: about a tenth of the share of a usual thread.
const NICE: i32 = 10;

/// Let the calling thread have a small share of a processor that others want as well.
///
/// # Errors
/// The system does not let it.
pub fn lower_priority() -> std::io::Result<()> {
    // Of the calling thread, on Linux.
    Ok(rustix::process::setpriority_process(None, NICE)?)
}

/// The time that the calling thread has had on a processor.
pub fn thread_cpu_time() -> Duration {
    time_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// The time that all threads of the process have had on processors.
pub fn process_cpu_time() -> Duration {
    time_of(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn time_of(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the structure, which is there until it returns, and nowhere else.
    #[expect(unsafe_code, reason = "the safe library's clocks are not built in for this alone")]
    let outcome = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if outcome != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_time_of_a_thread_is_the_time_in_which_it_ran() {
        let (begun, before) = (Instant::now(), thread_cpu_time());
        while thread_cpu_time() == before {
            std::hint::spin_loop();
        }
        assert!(thread_cpu_time() - before <= begun.elapsed());
        assert!(process_cpu_time() >= thread_cpu_time());
    }
}
