//! A thread of idle priority, which runs only while no other thread of the machine wants to.
//!
//! The kernel may pause such a thread for as long as others are busy: over a second was measured. If it
//! held a lock at that moment, a request that needs the lock would wait as long; a thread with a high nice
//! value is no better. So the work on this thread takes no lock that serving takes, and frees nothing that
//! other threads have allocated: it computes on what it is given, and returns it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Thread};

use guesthouse_runtime::priority;

type Work = Box<dyn FnOnce() + Send>;

/// A handle of the thread. Dropping it ends the thread.
pub(super) struct IdleThread {
    work: SyncSender<Work>,
    thread: Thread,
}

impl IdleThread {
    /// Start the thread.
    pub(super) fn start(name: String, stack_bytes: usize) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(0);
        let thread = thread::Builder::new().name(name).stack_size(stack_bytes);
        let handle = thread.spawn(move || run_work(&receiver))?;
        Ok(Self { work: sender, thread: handle.thread().clone() })
    }

    /// The thread, so that it can be unparked.
    pub(super) fn thread(&self) -> Thread {
        self.thread.clone()
    }

    /// Do this work on the thread and wait for its result; none if it panicked. What the work owns is
    /// dropped on that thread, so the work should return it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, result) = sync_channel(1);
        // The result is always received, below.
        let work = Box::new(move || drop(sender.send(work())));
        self.work.send(work).ok()?;
        result.recv().ok()
    }
}

fn run_work(work: &Receiver<Work>) {
    if let Err(error) = priority::use_idle_scheduling() {
        tracing::warn!(%error, "cannot set idle priority; shadows run at nice value 19");
        // If this fails as well, they run at normal priority.
        let _ = rustix::process::nice(19);
    }
    while let Ok(work) = work.recv() {
        // After a panic, the waiting thread sees that the channel is closed.
        let _ = catch_unwind(AssertUnwindSafe(work));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_returns_its_result_and_a_panic_ends_no_thread() {
        let idle = IdleThread::start("idle-test".to_owned(), 1 << 20).unwrap();
        let name = idle.run(|| thread::current().name().map(str::to_owned));
        assert_eq!(name.flatten().as_deref(), Some("idle-test"));
        assert_eq!(idle.run(|| panic!("on purpose")), None::<()>);
        let lent = vec![1, 2, 3];
        assert_eq!(idle.run(move || lent), Some(vec![1, 2, 3]));
    }
}
