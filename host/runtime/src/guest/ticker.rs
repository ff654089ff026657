//! The thread that lets running guests notice that their time is up.
//!
//! A guest looks up at every loop's back edge, but only when the engine's epoch has advanced; this
//! thread advances it while guests run, and sleeps while none does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How often a running guest looks up: what a deadline may be late by.
const TICK: Duration = Duration::from_millis(1);

/// How long the thread goes on when no guest runs any more. Under load it never sleeps, so that
/// waking it costs requests nothing; on an idle server it costs nothing.
const LINGER: Duration = Duration::from_millis(100);

/// The way to the ticking thread, which ends when the engine does.
#[derive(Debug, Clone)]
pub(super) struct Ticker {
    running: Arc<AtomicUsize>,
    thread: Thread,
}

/// A guest runs for as long as this is there.
pub(super) struct Running<'a>(&'a AtomicUsize);

impl Ticker {
    /// Start the thread. The epoch advances by `engine`.
    pub(super) fn start(engine: wasmtime::EngineWeak) -> io::Result<Self> {
        let running = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&running);
        let thread = thread::Builder::new().name("epoch".to_owned());
        let handle = thread.spawn(move || tick(&engine, &seen))?;
        Ok(Self { running, thread: handle.thread().clone() })
    }

    /// Tick until the guard is dropped.
    pub(super) fn running(&self) -> Running<'_> {
        if self.running.fetch_add(1, Ordering::SeqCst) == 0 {
            // Costs a system call only if the thread sleeps.
            self.thread.unpark();
        }
        Running(&self.running)
    }
}

impl Drop for Running<'_> {
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
            // An unpark between the look and the sleep is kept, so none is missed. The engine may
            // have ended meanwhile, hence the time limit.
            thread::park_timeout(Duration::from_secs(1));
        }
        let Some(engine) = engine.upgrade() else { return };
        engine.increment_epoch();
        drop(engine);
        thread::sleep(TICK);
    }
}
