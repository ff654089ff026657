//! The scheduling priority of threads, and the CPU time that they have used.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Use the idle scheduling policy for the calling thread, and for threads and processes that it
/// starts: it only runs on idle processors and is preempted at once. Niceness does not do this,
/// because the kernel lets a nice process finish its time slice of a few milliseconds.
///
/// # Errors
/// The system denies it.
pub fn use_idle_scheduling() -> std::io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live as long as the call, which reads them and nothing else.
    #[expect(unsafe_code, reason = "rustix has no sched_setscheduler")]
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The niceness of threads whose work may be delayed but has to make progress while all processors
/// are busy: about a tenth of the share of a normal thread.
const NICE: i32 = 10;

/// Lower the priority of the calling thread.
///
/// # Errors
/// The system denies it.
pub fn lower_priority() -> std::io::Result<()> {
    // On Linux, this only affects the calling thread.
    Ok(rustix::process::setpriority_process(None, NICE)?)
}

/// The CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    cpu_time(ClockId::ThreadCPUTime)
}

/// The CPU time of all threads of the process.
pub fn process_cpu_time() -> Duration {
    cpu_time(ClockId::ProcessCPUTime)
}

fn cpu_time(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_cpu_time_of_a_thread_advances_while_it_runs() {
        let (begun, before) = (Instant::now(), thread_cpu_time());
        while thread_cpu_time() == before {
            std::hint::spin_loop();
        }
        assert!(thread_cpu_time() - before <= begun.elapsed());
        assert!(process_cpu_time() >= thread_cpu_time());
    }
}
