//! The open loop: requests are scheduled at fixed or random times, whatever the server does.
//!
//! Latency counts from the scheduled time of a request, not from the time at which a connection
//! became free for it. The latter would omit exactly the delays that a slow server causes, which is
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

/// The highest rate in requests per second, about three times what one thread can send. Late starts
/// in the report show when a rate was too high.
pub const MAX_RATE: u32 = 100_000;

/// How the requests of an open loop are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// At equal intervals.
    Regular,
    /// As independent callers send them: at intervals of an exponential distribution, which this seed
    /// reproduces.
    Poisson(u64),
}

/// Runs an open loop of `rate` requests per second and returns its report.
///
/// A request counts if it is scheduled after the warm-up. The first free connection sends it; if
/// none is free until [`Load::request_time`] after the end of the run, it is counted as `unsent`.
/// Must be called on a tokio runtime with timers and network.
///
/// # Errors
/// [`LoadError`] before the first request, or if the trace cannot be written. Later failures are
/// counted in the report.
pub async fn open_loop(load: &Load, rate: u32, arrivals: Arrivals) -> Result<Report, LoadError> {
    load.check()?;
    if !(1..=MAX_RATE).contains(&rate) {
        return Err(run::out_of_bounds("rate", rate, MAX_RATE));
    }
    let connections = run::connect(load).await?;
    let random = match arrivals {
        Arrivals::Regular => Vec::new(),
        Arrivals::Poisson(seed) => poisson(rate, load.warm_up + load.duration, seed),
    };
    let run = Run::start(load)?;
    let schedule = Arc::new(Schedule {
        rate,
        random,
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
    schedule.run.finish(workers).await
}

struct Schedule {
    run: Run,
    rate: u32,
    /// The times of random arrivals since the start, past the end of the run.
    random: Vec<Duration>,
    /// Requests that are not sent by this time are given up.
    give_up: Instant,
    /// One permit for each request that is due and not yet sent.
    due: Semaphore,
}

impl Schedule {
    /// The scheduled time of the request of this number. It is computed from the start of the run,
    /// so that rounding errors do not accumulate.
    fn due(&self, number: usize) -> Instant {
        if let Some(last) = self.random.last() {
            return self.run.start + *self.random.get(number).unwrap_or(last);
        }
        // At the highest rate and for the longest time, this is below 2^57.
        let nanoseconds = number as u64 * 1_000_000_000 / u64::from(self.rate);
        self.run.start + Duration::from_nanos(nanoseconds)
    }
}

/// Arrivals of this rate; only the last one is past the time.
fn poisson(rate: u32, time: Duration, seed: u64) -> Vec<Duration> {
    let (mut arrivals, mut last, mut state) = (Vec::new(), 0.0, seed);
    while last < time.as_secs_f64() {
        // splitmix64. The upper 53 bits are a number from 0 to 1, without 1.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let uniform = ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
        last -= (1.0 - uniform).ln() / f64::from(rate);
        arrivals.push(Duration::from_secs_f64(last));
    }
    arrivals
}

/// Adds a permit whenever a request is due. It runs on its own thread, because tokio's timers have
/// a resolution of a millisecond, which is the duration of many requests.
///
/// It ends with the run, even if the run is dropped.
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
            // One more permit for each worker, which then finds that the run is over.
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
        // Permits are added in the order of the numbers, so the request of this number is due.
        let number = run.number();
        let (due, sent) = (schedule.due(number), Instant::now());
        if due >= run.end || number >= run.requests {
            return;
        }
        if sent >= schedule.give_up {
            run.count_unsent(due);
            continue;
        }
        let result = connection.send(number).await;
        run.count(&result, due, sent);
        connection.recover().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals_have_exponential_intervals() {
        let time = Duration::from_secs(100);
        let arrivals = poisson(500, time, 1);
        assert!(arrivals.is_sorted() && arrivals.last().is_some_and(|last| *last >= time));
        // 50 000 intervals: five standard errors around the mean, and around 1/e of them that are
        // longer than it.
        assert!((arrivals.len() as f64 - 50_000.0).abs() < 5.0 * 50_000_f64.sqrt());
        let mean = Duration::from_millis(2);
        let longer = arrivals.windows(2).filter(|pair| pair[1] - pair[0] > mean).count() as f64;
        let expected = 50_000.0 / std::f64::consts::E;
        assert!((longer - expected).abs() < 5.0 * expected.sqrt(), "{longer}");
        assert_ne!(poisson(500, time, 2), arrivals);
    }
}
