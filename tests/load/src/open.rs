//! The open loop: requests are due at fixed times, whatever the server does.
//!
//! Latency counts from the time a request was due, not from when a connection was free for it.
//! Counting from the latter would leave out just the waits that a slow server causes, which is
//! known as coordinated omission.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::LoadError;
use crate::connection::Connection;
use crate::report::Report;
use crate::run::{self, Load, Run};

/// The highest rate, in requests per second. Some three times what one thread was
/// seen to send; a report with late starts says when a rate was too high.
pub const MAX_RATE: u32 = 100_000;

/// Makes a load of `rate` requests per second and measures what comes of it.
///
/// A request counts if it is due after the warm-up. It is sent by the first connection that is
/// free, or counted as `unsent` if none is until [`Load::request_time`] after the end of the run.
/// Must be called on a tokio runtime with timers and network.
///
/// # Errors
/// [`LoadError`], before the first request, or because the trace cannot be written. What else goes
/// wrong later is in the report.
pub async fn open_loop(load: &Load, rate: u32) -> Result<Report, LoadError> {
    load.check()?;
    if !(1..=MAX_RATE).contains(&rate) {
        return Err(run::out_of_bounds("rate", rate, MAX_RATE));
    }
    let connections = run::connect(load).await?;
    let run = Run::start(load)?;
    let schedule = Arc::new(Schedule {
        rate,
        give_up: run.end + load.request_time,
        due: Semaphore::new(0),
        run,
    });
    let (clock, count) = (Arc::downgrade(&schedule), load.connections);
    thread::Builder::new()
        .name("load-clock".to_owned())
        .spawn(move || keep_time(&clock, count))
        .map_err(LoadError::Thread)?;

    let mut workers = JoinSet::new();
    for connection in connections {
        workers.spawn(work(Arc::clone(&schedule), connection));
    }
    schedule.run.finish(workers, Some(rate)).await
}

struct Schedule {
    run: Run,
    rate: u32,
    /// Requests that are due after this time are given up.
    give_up: Instant,
    /// A permit for each request that is due and not sent. It is only a number, so it needs no
    /// bound of its own.
    due: Semaphore,
}

impl Schedule {
    /// When the request of this number is due. Counted from the start, so that no error adds up.
    fn due(&self, number: usize) -> Instant {
        // At the highest rate and for the longest time this is below 2^57.
        let nanoseconds = number as u64 * 1_000_000_000 / u64::from(self.rate);
        self.run.start + Duration::from_nanos(nanoseconds)
    }
}

/// Gives a permit whenever a request is due. On a thread of its own, because tokio's timers are
/// only exact to a millisecond, which is as long as many requests take.
///
/// Ends with the run, also if that is dropped half-way.
fn keep_time(schedule: &Weak<Schedule>, workers: usize) {
    let mut next = 0;
    loop {
        let Some(schedule) = schedule.upgrade() else {
            return;
        };
        let (now, first) = (Instant::now(), next);
        while schedule.due(next) <= now && schedule.due(next) < schedule.run.end {
            next += 1;
        }
        schedule.due.add_permits(next - first);
        let due = schedule.due(next);
        if due >= schedule.run.end {
            // One more for each worker, which then finds that nothing is left to do.
            schedule.due.add_permits(workers);
            return;
        }
        drop(schedule);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

async fn work(schedule: Arc<Schedule>, mut connection: Connection) {
    let run = &schedule.run;
    // The semaphore is never closed.
    while let Ok(permit) = schedule.due.acquire().await {
        permit.forget();
        // Permits come in the order of the numbers, so the request of this number is due.
        let number = run.number();
        let (due, sent) = (schedule.due(number), Instant::now());
        if due >= run.end || number >= run.requests {
            return;
        }
        if sent >= schedule.give_up {
            run.count_unsent(due);
            continue;
        }
        let answer = connection.ask(number).await;
        run.count(&answer, due, sent);
        connection.recover().await;
    }
}
