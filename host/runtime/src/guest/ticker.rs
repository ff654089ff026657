//! The thread that advances the engine's epoch, so that running guests check their deadlines.
//!
//! A guest checks at loop back edges and function entries whether the epoch has advanced. This
//! thread advances it while guests run and sleeps while none does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The epoch interval: how much later than its deadline a guest may be interrupted.
const TICK: Duration = Duration::from_millis(1);

/// How long the thread keeps ticking after the last guest has ended. Under load it never sleeps, so
/// that no request pays for waking it; on an idle server it costs nothing.
const LINGER: Duration = Duration::from_millis(100);

/// A handle to the thread, which ends with the engine.
#[derive(Debug, Clone)]
pub(super) struct Ticker {
    running: Arc<AtomicUsize>,
    thread: Thread,
}

/// Keeps the epoch advancing while a guest runs.
pub(super) struct RunningGuard<'a>(&'a AtomicUsize);

impl Ticker {
    /// Start the thread for this engine.
    pub(super) fn start(engine: wasmtime::EngineWeak) -> io::Result<Self> {
        let running = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&running);
        let thread = thread::Builder::new().name("epoch".to_owned());
        let handle = thread.spawn(move || tick(&engine, &seen))?;
        Ok(Self { running, thread: handle.thread().clone() })
    }

    /// Advance the epoch until the guard is dropped.
    pub(super) fn running(&self) -> RunningGuard<'_> {
        if self.running.fetch_add(1, Ordering::SeqCst) == 0 {
            // This is a system call only if the thread sleeps.
            self.thread.unpark();
        }
        RunningGuard(&self.running)
    }
}

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &wasmtime::EngineWeak, running: &AtomicUsize) {
    let mut last_needed = Instant::now();
    loop {
        if running.load(Ordering::SeqCst) > 0 {
            last_needed = Instant::now();
        } else if last_needed.elapsed() > LINGER {
            // An unpark between the check and the park is not lost. The timeout is there because
            // the engine may have ended meanwhile.
            thread::park_timeout(Duration::from_secs(1));
        }
        let Some(engine) = engine.upgrade() else { return };
        engine.increment_epoch();
        drop(engine);
        thread::sleep(TICK);
    }
}
