//! The queue of comparisons: bounded in number and in bytes. Sending never waits.
//!
//! The thread that waits for an item has idle priority, so the kernel may pause it anywhere. Therefore it
//! parks and is unparked without a lock, and a thread of normal priority receives the item.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The sending side of the queue. Dropping it closes the queue.
pub(super) struct QueueSender<T> {
    queue: SyncSender<Queued<T>>,
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    notifier: Arc<Notifier>,
}

/// The receiving side of the queue, shared by several threads.
pub(super) struct QueueReceiver<T> {
    queue: Mutex<Receiver<Queued<T>>>,
    notifier: Arc<Notifier>,
}

/// An item of the queue.
pub(super) struct Queued<T> {
    pub(super) item: T,
    /// Counts the item's bytes until the item has been dropped.
    pub(super) reservation: ByteReservation,
}

/// Bytes that count against the bound of the queue until this is dropped.
pub(super) struct ByteReservation {
    size: usize,
    bytes: Arc<AtomicUsize>,
}

impl Drop for ByteReservation {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// Wakes the threads that wait for items.
pub(super) struct Notifier {
    /// Items in the queue, or just about to be.
    queued: AtomicUsize,
    ended: AtomicBool,
    waiters: Vec<Waiter>,
}

struct Waiter {
    thread: Thread,
    is_parked: AtomicBool,
}

/// Why a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wakeup {
    /// There may be an item.
    Ready,
    /// There was no item within the timeout.
    TimedOut,
    /// There will be no more items.
    Closed,
}

impl Notifier {
    /// Wait on the thread of this index. All operations are sequentially consistent, so either this
    /// thread sees the queued item, or the thread that queued it sees this one parked.
    pub(super) fn wait(&self, index: usize, timeout: Option<Duration>) -> Wakeup {
        let (waiter, begun) = (&self.waiters[index], Instant::now());
        let wakeup = loop {
            waiter.is_parked.store(true, Ordering::SeqCst);
            if self.ended.load(Ordering::SeqCst) {
                break Wakeup::Closed;
            }
            if self.queued.load(Ordering::SeqCst) > 0 {
                break Wakeup::Ready;
            }
            match timeout.map(|timeout| timeout.saturating_sub(begun.elapsed())) {
                None => thread::park(),
                Some(Duration::ZERO) => break Wakeup::TimedOut,
                Some(left) => thread::park_timeout(left),
            }
        };
        waiter.is_parked.store(false, Ordering::SeqCst);
        wakeup
    }

    /// Wake one waiter, if any is parked. Busy threads look at the queue when they are done.
    fn notify_one(&self) {
        let is_parked = |waiter: &&Waiter| waiter.is_parked.swap(false, Ordering::SeqCst);
        if let Some(waiter) = self.waiters.iter().find(is_parked) {
            waiter.thread.unpark();
        }
    }
}

/// A queue of at most `max_items` items. Items that are queued or being worked on have at most
/// `max_bytes` bytes. `waiters` are the threads that will wait for items.
pub(super) fn bounded<T>(
    max_items: usize,
    max_bytes: usize,
    waiters: impl IntoIterator<Item = Thread>,
) -> (QueueSender<T>, QueueReceiver<T>) {
    let (sender, receiver) = sync_channel(max_items);
    let waiter = |thread| Waiter { thread, is_parked: AtomicBool::new(false) };
    let notifier = Arc::new(Notifier {
        queued: AtomicUsize::new(0),
        ended: AtomicBool::new(false),
        waiters: waiters.into_iter().map(waiter).collect(),
    });
    let receiving = QueueReceiver { queue: Mutex::new(receiver), notifier: Arc::clone(&notifier) };
    (QueueSender { queue: sender, bytes: Arc::default(), max_bytes, notifier }, receiving)
}

impl<T> QueueSender<T> {
    /// Queue an item if there is room. Returns whether there was. Never waits.
    pub(super) fn try_send(&self, item: T, size: usize) -> bool {
        let fits = |bytes: usize| bytes.checked_add(size).filter(|sum| *sum <= self.max_bytes);
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return false;
        }
        let reservation = ByteReservation { size, bytes: Arc::clone(&self.bytes) };
        self.notifier.queued.fetch_add(1, Ordering::SeqCst);
        let queued = self.queue.try_send(Queued { item, reservation }).is_ok();
        if queued {
            self.notifier.notify_one();
        } else {
            self.notifier.queued.fetch_sub(1, Ordering::SeqCst);
        }
        queued
    }
}

impl<T> Drop for QueueSender<T> {
    fn drop(&mut self) {
        self.notifier.ended.store(true, Ordering::SeqCst);
        self.notifier.waiters.iter().for_each(|waiter| waiter.thread.unpark());
    }
}

impl<T> QueueReceiver<T> {
    /// The notifier to wait on.
    pub(super) fn notifier(&self) -> Arc<Notifier> {
        Arc::clone(&self.notifier)
    }

    /// The next item, if there is one.
    pub(super) fn try_receive(&self) -> Option<Queued<T>> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let queued = queue.try_recv().ok()?;
        self.notifier.queued.fetch_sub(1, Ordering::SeqCst);
        Some(queued)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_at_once_while_receivers_are_stuck() {
        let (sender, receiver) = bounded(2, 100, []);
        assert!(sender.try_send("a", 10));
        // A worker that holds everything that a worker can hold, and does not move.
        let in_hand = receiver.try_receive().unwrap();
        let _stuck = receiver.queue.lock().unwrap();
        assert!(sender.try_send("b", 10) && sender.try_send("c", 10));
        assert!(!sender.try_send("d", 10), "two are waiting");
        assert_eq!((in_hand.item, sender.bytes.load(Ordering::Relaxed)), ("a", 30));
    }

    #[test]
    fn bytes_are_counted_until_the_work_is_done() {
        let (sender, receiver) = bounded(10, 100, []);
        assert!(!sender.try_send("more than fits at all", 101) && !sender.try_send("", usize::MAX));
        assert!(sender.try_send("a", 60));
        let in_hand = receiver.try_receive().unwrap();
        assert!(!sender.try_send("b", 60));
        drop(in_hand);
        assert!(sender.try_send("b", 60));
        drop(receiver);
        assert!(!sender.try_send("c", 1), "nobody is there any more");
        assert_eq!(sender.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn every_item_is_received_by_one_of_the_waiters() {
        const ITEMS: usize = 2000;
        let (send, parked) = std::sync::mpsc::channel();
        let waiters = (0..3).map(|index| {
            let (queue_sender, queues) = std::sync::mpsc::channel::<Arc<QueueReceiver<usize>>>();
            let send = send.clone();
            let waiter = thread::spawn(move || {
                let receiver = queues.recv().unwrap();
                loop {
                    match receiver.notifier().wait(index, None) {
                        Wakeup::Closed => break,
                        _ => std::iter::from_fn(|| receiver.try_receive())
                            .for_each(|queued| send.send(queued.item).unwrap()),
                    }
                }
            });
            (waiter, queue_sender)
        });
        let (threads, queue_senders): (Vec<_>, Vec<_>) = waiters.unzip();
        let handles = threads.iter().map(|waiter| waiter.thread().clone());
        let (sender, receiver) = bounded(ITEMS, ITEMS, handles);
        let receiver = Arc::new(receiver);
        queue_senders.iter().for_each(|sender| sender.send(Arc::clone(&receiver)).unwrap());
        let mut all: Vec<_> = (0..ITEMS)
            .map(|item| {
                assert!(sender.try_send(item, 1));
                // Now and then all of them are is_parked.
                if item % 10 == 0 { Some(parked.recv().unwrap()) } else { None }
            })
            .collect();
        let rest = all.iter().filter(|item| item.is_none()).count();
        all.extend((0..rest).map(|_| Some(parked.recv().unwrap())));
        let mut all: Vec<_> = all.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..ITEMS).collect::<Vec<_>>());
        drop(sender);
        threads.into_iter().for_each(|waiter| waiter.join().unwrap());
    }

    #[test]
    fn a_wait_ends_at_its_timeout_and_when_the_queue_closes() {
        let (sender, receiver) = bounded(1, 1, [thread::current()]);
        let notifier = receiver.notifier();
        assert_eq!(notifier.wait(0, Some(Duration::ZERO)), Wakeup::TimedOut);
        assert!(sender.try_send((), 1));
        assert_eq!(notifier.wait(0, Some(Duration::ZERO)), Wakeup::Ready);
        drop(sender);
        assert_eq!(notifier.wait(0, None), Wakeup::Closed);
    }
}
