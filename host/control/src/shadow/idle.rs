//! A thread that runs only when nobody else wants to, and the work that is done on it.
//!
//! The kernel may leave such a thread lying for as long as others are busy: measured, over a second.
//! If it held a lock by then, a request that wants the lock would wait as long; a nice thread is no
//! better. So what is done here takes no lock that serving takes, and frees nothing that others have
//! allocated: it computes, on what it is lent, and gives everything back.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Thread};

use guesthouse_runtime::priority;

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread, which ends when this is dropped.
pub(super) struct Idle {
    work: SyncSender<Work>,
    thread: Thread,
}

impl Idle {
    /// Start the thread.
    pub(super) fn start(name: String, stack_bytes: usize) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(0);
        let thread = thread::Builder::new().name(name).stack_size(stack_bytes);
        let handle = thread.spawn(move || obey(&receiver))?;
        Ok(Self { work: sender, thread: handle.thread().clone() })
    }

    /// The thread, to be woken.
    pub(super) fn thread(&self) -> Thread {
        self.thread.clone()
    }

    /// Have it done, and wait for it; none if it panicked. What the work owns is dropped on that
    /// thread, so it should return it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = sync_channel(1);
        // There is always somebody who waits for the answer.
        let work = Box::new(move || drop(answer.send(work())));
        self.work.send(work).ok()?;
        answered.recv().ok()
    }
}

fn obey(work: &Receiver<Work>) {
    if let Err(error) = priority::use_idle_scheduling() {
        tracing::warn!(%error, "cannot have idle priority, shadows run at the lowest other one");
        // Nothing else is left to try.
        let _ = rustix::process::nice(19);
    }
    while let Ok(work) = work.recv() {
        // The one who waits for the answer sees that none comes.
        let _ = catch_unwind(AssertUnwindSafe(work));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_returned_even_after_a_panic() {
        let idle = Idle::start("idle-test".to_owned(), 1 << 20).unwrap();
        let name = idle.run(|| thread::current().name().map(str::to_owned));
        assert_eq!(name.flatten().as_deref(), Some("idle-test"));
        assert_eq!(idle.run(|| panic!("on purpose")), None::<()>);
        let lent = vec![1, 2, 3];
        assert_eq!(idle.run(move || lent), Some(vec![1, 2, 3]));
    }
}
