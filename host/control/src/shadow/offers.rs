//! The queue before the shadows' threads: bounded in number and in bytes, and nobody waits to put
//! something in.
//!
//! Who waits for something to take is a thread at idle priority, which may stop anywhere; so it
//! sleeps and is woken without a lock, and another thread takes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The way into the queue, which ends when this is dropped.
pub(super) struct Offers<T> {
    queue: SyncSender<Offered<T>>,
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    bell: Arc<Bell>,
}

/// The way out of it, for several threads.
pub(super) struct Taken<T> {
    queue: Mutex<Receiver<Offered<T>>>,
    bell: Arc<Bell>,
}

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

/// What wakes those who wait.
pub(super) struct Bell {
    /// Things in the queue, or just about to be.
    queued: AtomicUsize,
    ended: AtomicBool,
    sleepers: Vec<Sleeper>,
}

struct Sleeper {
    thread: Thread,
    asleep: AtomicBool,
}

/// Why there is no more waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// There may be something to take.
    Take,
    /// For as long as somebody had patience, there was not.
    Patience,
    /// There will be no more.
    End,
}

impl Bell {
    /// Wait on the thread of this index. The order of all of these operations is one for all threads,
    /// so either the thread sees what was queued or whoever queued it sees the thread asleep.
    pub(super) fn wait(&self, index: usize, patience: Option<Duration>) -> Call {
        let (sleeper, begun) = (&self.sleepers[index], Instant::now());
        let call = loop {
            sleeper.asleep.store(true, Ordering::SeqCst);
            if self.ended.load(Ordering::SeqCst) {
                break Call::End;
            }
            if self.queued.load(Ordering::SeqCst) > 0 {
                break Call::Take;
            }
            match patience.map(|patience| patience.saturating_sub(begun.elapsed())) {
                None => thread::park(),
                Some(Duration::ZERO) => break Call::Patience,
                Some(left) => thread::park_timeout(left),
            }
        };
        sleeper.asleep.store(false, Ordering::SeqCst);
        call
    }

    /// Wake one, if any sleeps; the others look for themselves when they are done.
    fn ring(&self) {
        let asleep = |sleeper: &&Sleeper| sleeper.asleep.swap(false, Ordering::SeqCst);
        if let Some(sleeper) = self.sleepers.iter().find(asleep) {
            sleeper.thread.unpark();
        }
    }
}

/// A queue of at most so many things, and bytes of things that are queued or in hand; `sleepers` are
/// going to wait for them.
pub(super) fn offers<T>(
    most: usize,
    max_bytes: usize,
    sleepers: impl IntoIterator<Item = Thread>,
) -> (Offers<T>, Taken<T>) {
    let (sender, receiver) = sync_channel(most);
    let sleeper = |thread| Sleeper { thread, asleep: AtomicBool::new(false) };
    let bell = Arc::new(Bell {
        queued: AtomicUsize::new(0),
        ended: AtomicBool::new(false),
        sleepers: sleepers.into_iter().map(sleeper).collect(),
    });
    let taken = Taken { queue: Mutex::new(receiver), bell: Arc::clone(&bell) };
    (Offers { queue: sender, bytes: Arc::default(), max_bytes, bell }, taken)
}

impl<T> Offers<T> {
    /// Put it in if there is room; whether there was. Never waits.
    pub(super) fn offer(&self, what: T, size: usize) -> bool {
        let fits = |bytes: usize| bytes.checked_add(size).filter(|sum| *sum <= self.max_bytes);
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return false;
        }
        let held = Held { size, bytes: Arc::clone(&self.bytes) };
        self.bell.queued.fetch_add(1, Ordering::SeqCst);
        let queued = self.queue.try_send(Offered { what, held }).is_ok();
        if queued {
            self.bell.ring();
        } else {
            self.bell.queued.fetch_sub(1, Ordering::SeqCst);
        }
        queued
    }
}

impl<T> Drop for Offers<T> {
    fn drop(&mut self) {
        self.bell.ended.store(true, Ordering::SeqCst);
        self.bell.sleepers.iter().for_each(|sleeper| sleeper.thread.unpark());
    }
}

impl<T> Taken<T> {
    /// What to wait with.
    pub(super) fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// The next thing, if there is one.
    pub(super) fn take(&self) -> Option<Offered<T>> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let offered = queue.try_recv().ok()?;
        self.bell.queued.fetch_sub(1, Ordering::SeqCst);
        Some(offered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_rejects_without_blocking() {
        let (offers, taken) = offers(2, 100, []);
        assert!(offers.offer("a", 10));
        // A worker that holds everything that a worker can hold, and does not move.
        let in_hand = taken.take().unwrap();
        let _stuck = taken.queue.lock().unwrap();
        assert!(offers.offer("b", 10) && offers.offer("c", 10));
        assert!(!offers.offer("d", 10), "two are waiting");
        assert_eq!((in_hand.what, offers.bytes.load(Ordering::Relaxed)), ("a", 30));
    }

    #[test]
    fn queued_bytes_are_released_when_the_work_ends() {
        let (offers, taken) = offers(10, 100, []);
        assert!(!offers.offer("more than fits at all", 101) && !offers.offer("", usize::MAX));
        assert!(offers.offer("a", 60));
        let in_hand = taken.take().unwrap();
        assert!(!offers.offer("b", 60));
        drop(in_hand);
        assert!(offers.offer("b", 60));
        drop(taken);
        assert!(!offers.offer("c", 1), "nobody is there any more");
        assert_eq!(offers.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn every_item_is_received_by_one_worker() {
        const THINGS: usize = 2000;
        let (send, parked) = std::sync::mpsc::channel();
        let sleepers = (0..3).map(|index| {
            let (tell, told) = std::sync::mpsc::channel::<Arc<Taken<usize>>>();
            let send = send.clone();
            let sleeper = thread::spawn(move || {
                let taken = told.recv().unwrap();
                loop {
                    match taken.bell().wait(index, None) {
                        Call::End => break,
                        _ => std::iter::from_fn(|| taken.take())
                            .for_each(|offered| send.send(offered.what).unwrap()),
                    }
                }
            });
            (sleeper, tell)
        });
        let (threads, tell): (Vec<_>, Vec<_>) = sleepers.unzip();
        let handles = threads.iter().map(|sleeper| sleeper.thread().clone());
        let (offers, taken) = offers(THINGS, THINGS, handles);
        let taken = Arc::new(taken);
        tell.iter().for_each(|tell| tell.send(Arc::clone(&taken)).unwrap());
        let mut all: Vec<_> = (0..THINGS)
            .map(|thing| {
                assert!(offers.offer(thing, 1));
                // Now and then all of them are asleep.
                if thing % 10 == 0 { Some(parked.recv().unwrap()) } else { None }
            })
            .collect();
        let rest = all.iter().filter(|thing| thing.is_none()).count();
        all.extend((0..rest).map(|_| Some(parked.recv().unwrap())));
        let mut all: Vec<_> = all.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..THINGS).collect::<Vec<_>>());
        drop(offers);
        threads.into_iter().for_each(|sleeper| sleeper.join().unwrap());
    }

    #[test]
    fn items_expire_and_the_queue_closes() {
        let (offers, taken) = offers(1, 1, [thread::current()]);
        let bell = taken.bell();
        assert_eq!(bell.wait(0, Some(Duration::ZERO)), Call::Patience);
        assert!(offers.offer((), 1));
        assert_eq!(bell.wait(0, Some(Duration::ZERO)), Call::Take);
        drop(offers);
        assert_eq!(bell.wait(0, None), Call::End);
    }
}
