//! The queue before the shadows' threads: bounded in number and in bytes, and nobody waits to put
//! something in.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// The way into the queue.
pub(super) struct Offers<T> {
    queue: SyncSender<Offered<T>>,
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
}

/// The way out of it, for several threads.
pub(super) struct Taken<T>(Mutex<Receiver<Offered<T>>>);

/// Something that was put in.
pub(super) struct Offered<T> {
    pub(super) what: T,
    /// To be held until it is dropped.
    pub(super) held: Held,
}

/// Bytes that count as long as this is there.
pub(super) struct Held {
    size: usize,
    bytes: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A queue of at most so many things, and bytes of things that are queued or in hand.
pub(super) fn offers<T>(most: usize, max_bytes: usize) -> (Offers<T>, Taken<T>) {
    let (queue, taken) = sync_channel(most);
    (Offers { queue, bytes: Arc::default(), max_bytes }, Taken(Mutex::new(taken)))
}

impl<T> Offers<T> {
    /// Put it in if there is room; whether there was. Never waits.
    pub(super) fn offer(&self, what: T, size: usize) -> bool {
        let fits = |bytes: usize| bytes.checked_add(size).filter(|sum| *sum <= self.max_bytes);
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return false;
        }
        let held = Held { size, bytes: Arc::clone(&self.bytes) };
        self.queue.try_send(Offered { what, held }).is_ok()
    }
}

impl<T> Taken<T> {
    /// The next thing, as soon as there is one; none when there will be no more.
    pub(super) fn next(&self) -> Option<Offered<T>> {
        // Whoever waits for the lock waits for a thing all the same.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_at_once_whatever_is_going_on_behind_it() {
        let (offers, taken) = offers(2, 100);
        assert!(offers.offer("a", 10));
        // A worker that holds everything that a worker can hold, and does not move.
        let in_hand = taken.next().unwrap();
        let _stuck = taken.0.lock().unwrap();
        assert!(offers.offer("b", 10) && offers.offer("c", 10));
        assert!(!offers.offer("d", 10), "two are waiting");
        assert_eq!((in_hand.what, offers.bytes.load(Ordering::Relaxed)), ("a", 30));
    }

    #[test]
    fn bytes_are_counted_until_the_work_is_done() {
        let (offers, taken) = offers(10, 100);
        assert!(!offers.offer("more than fits at all", 101) && !offers.offer("", usize::MAX));
        assert!(offers.offer("a", 60));
        let in_hand = taken.next().unwrap();
        assert!(!offers.offer("b", 60));
        drop(in_hand);
        assert!(offers.offer("b", 60));
        drop(taken);
        assert!(!offers.offer("c", 1), "nobody is there any more");
        assert_eq!(offers.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_in_the_queue_is_taken_before_it_ends() {
        let (offers, taken) = offers(10, 100);
        assert!(offers.offer(1, 0) && offers.offer(2, 0));
        drop(offers);
        let all: Vec<_> = std::iter::from_fn(|| taken.next().map(|offered| offered.what)).collect();
        assert_eq!(all, [1, 2]);
    }
}
