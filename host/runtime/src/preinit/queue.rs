//! Whose turn it is to be compiled.
//!
//! Compiling is the one part of loading that takes long, so it is the one part that queues. Small
//! artifacts have places of their own beside the large ones, and do not wait for them. What turns out
//! to be slow, although it is small, gives its place up and is compiled again among the large ones.
//! Within each lane, whoever somebody waits for goes first.
//!
//! Memory is bounded by the children's limits: one child of a large artifact may use all of
//! `preinit_memory_mib`, and the children of small ones together as much again.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The largest artifact that counts as small, in bytes, assets included. Guests without a library for
/// inference have a few hundred KiB and compile in a second; those with one have tens of MiB.
pub const SMALL_ARTIFACT_BYTES: u64 = 1 << 20;

/// The most small artifacts that are compiled at once. They share the cores, so that more would only
/// make each of them slower.
const MAX_SMALL: usize = 4;

/// What compiling a small artifact may take beside the guest's own memory, in bytes. A guest of 1 MiB
/// takes a fifth of it.
const SMALL_COMPILER_BYTES: u64 = 512 << 20;

/// How long a small artifact has its place for itself if another one wants it.
const SMALL_TURN: Duration = Duration::from_secs(1);

/// What takes longer is not small, whether somebody waits or not.
const SMALL_TIME: Duration = Duration::from_secs(10);

/// Who waits for it; the later ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A file of the repository folder.
    Folder,
    /// What was served before a restart.
    Restore,
    /// An operator.
    Operator,
}

/// Something to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    urgency: Urgency,
    is_small: bool,
    memory_bytes: u64,
}

impl Job {
    /// An artifact of that size, whose guest may have so much memory, where a child may have so much.
    pub fn new(urgency: Urgency, artifact_bytes: u64, guest_bytes: u64, child_bytes: u64) -> Self {
        let job = Self { urgency, is_small: false, memory_bytes: child_bytes };
        let small_bytes = guest_bytes.saturating_add(SMALL_COMPILER_BYTES).min(child_bytes);
        if artifact_bytes <= SMALL_ARTIFACT_BYTES {
            Self { is_small: true, memory_bytes: small_bytes, ..job }
        } else {
            job
        }
    }

    /// The same among the large ones, with all that a child may have.
    pub fn as_large(self, child_bytes: u64) -> Self {
        Self { is_small: false, memory_bytes: child_bytes, ..self }
    }

    /// Whether it has a place beside the large ones.
    pub fn is_small(self) -> bool {
        self.is_small
    }

    /// What its child may use.
    pub fn memory_bytes(self) -> u64 {
        self.memory_bytes
    }
}

/// The artifacts that are being compiled and those that wait for it. Each entry is a thread that
/// waits, so there are no more than operations, loads by name, and workers of the folder.
#[derive(Debug)]
pub struct CompileQueue {
    lanes: Mutex<Lanes>,
    changed: Condvar,
}

/// A place among those that are compiled, given up when it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    queue: &'a CompileQueue,
    number: u64,
}

impl CompileQueue {
    /// One whose small artifacts may together use so much memory.
    pub fn new(memory_bytes: u64) -> Self {
        Self { lanes: Mutex::new(Lanes::new(memory_bytes)), changed: Condvar::new() }
    }

    /// Wait for a turn.
    pub fn enter(&self, job: Job) -> Turn<'_> {
        let mut lanes = self.lock();
        let number = lanes.wait(job);
        while !lanes.try_start(number, Instant::now()) {
            lanes = self.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner);
        }
        drop(lanes);
        // There may be room for the next one, too.
        self.changed.notify_all();
        Turn { queue: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Whether the work has to stop, and be done again among the large ones.
    pub fn must_yield(&self) -> bool {
        self.queue.lock().must_yield(self.number, Instant::now())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.queue.lock().running.remove(&self.number);
        self.queue.changed.notify_all();
    }
}

/// Who waits and who works, by number: the lower one came first.
#[derive(Debug)]
struct Lanes {
    memory_bytes: u64,
    next: u64,
    waiting: BTreeMap<u64, Job>,
    running: BTreeMap<u64, (Job, Instant)>,
}

impl Lanes {
    fn new(memory_bytes: u64) -> Self {
        Self { memory_bytes, next: 0, waiting: BTreeMap::new(), running: BTreeMap::new() }
    }

    fn wait(&mut self, job: Job) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, job);
        number
    }

    /// Whether it is the turn of that one, which then is at work.
    fn try_start(&mut self, number: u64, now: Instant) -> bool {
        let Some(job) = self.waiting.get(&number).copied() else { return false };
        if self.first(job.is_small) != Some(number) || !self.has_room(job) {
            return false;
        }
        self.waiting.remove(&number);
        self.running.insert(number, (job, now));
        true
    }

    fn first(&self, is_small: bool) -> Option<u64> {
        let lane = self.waiting.iter().filter(|(_, job)| job.is_small == is_small);
        let first = lane.min_by_key(|(number, job)| (std::cmp::Reverse(job.urgency), **number));
        first.map(|(number, _)| *number)
    }

    fn has_room(&self, job: Job) -> bool {
        let same = self.running.values().filter(|(other, _)| other.is_small == job.is_small);
        let (mut count, mut memory_bytes) = (0, 0_u64);
        for (other, _) in same {
            count += 1;
            memory_bytes = memory_bytes.saturating_add(other.memory_bytes);
        }
        if !job.is_small || count == 0 {
            return count == 0;
        }
        count < MAX_SMALL && memory_bytes.saturating_add(job.memory_bytes) <= self.memory_bytes
    }

    fn must_yield(&self, number: u64, now: Instant) -> bool {
        let small = || self.running.iter().filter(|(_, (job, _))| job.is_small);
        let Some((_, (_, since))) = small().find(|(other, _)| **other == number) else {
            return false;
        };
        let time = now.saturating_duration_since(*since);
        let is_wanted = self.waiting.values().any(|job| job.is_small);
        let oldest = small().min_by_key(|(number, (_, since))| (*since, **number));
        let is_oldest = oldest.is_some_and(|(oldest, _)| *oldest == number);
        time >= SMALL_TIME || is_wanted && is_oldest && time >= SMALL_TURN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn small(urgency: Urgency) -> Job {
        Job::new(urgency, 5 << 10, GIB, 6 * GIB)
    }

    fn large(urgency: Urgency) -> Job {
        Job::new(urgency, 20 << 20, GIB, 6 * GIB)
    }

    #[test]
    fn small_artifacts_are_compiled_beside_a_large_one_and_large_ones_one_at_a_time() {
        let (mut lanes, now) = (Lanes::new(6 * GIB), Instant::now());
        let first = lanes.wait(large(Urgency::Folder));
        assert!(lanes.try_start(first, now));
        let second = lanes.wait(large(Urgency::Operator));
        assert!(!lanes.try_start(second, now));
        for _ in 0..MAX_SMALL {
            let one = lanes.wait(small(Urgency::Folder));
            assert!(lanes.try_start(one, now));
        }
        let more = lanes.wait(small(Urgency::Operator));
        assert!(!lanes.try_start(more, now));
        lanes.running.remove(&first);
        assert!(lanes.try_start(second, now) && !lanes.try_start(more, now));
    }

    #[test]
    fn small_children_together_have_no_more_memory_than_a_large_one() {
        let mut lanes = Lanes::new(6 * GIB);
        let half = Job::new(Urgency::Folder, 1, 3 * GIB, 6 * GIB);
        let [one, other] = [half, half].map(|job| lanes.wait(job));
        assert!(lanes.try_start(one, Instant::now()) && !lanes.try_start(other, Instant::now()));
        let (job, most) = (Job::new(Urgency::Folder, 1, 9 * GIB, 6 * GIB), 6 * GIB);
        assert_eq!(job.memory_bytes(), most, "a child has its own limit at most");
        assert_eq!(small(Urgency::Folder).as_large(most), large(Urgency::Folder));
    }

    #[test]
    fn the_more_urgent_goes_first_and_of_equals_the_one_that_came_first() {
        for job in [small, large] {
            let (mut lanes, now) = (Lanes::new(GIB), Instant::now());
            let busy = lanes.wait(job(Urgency::Folder));
            assert!(lanes.try_start(busy, now));
            use Urgency::{Folder, Operator, Restore};
            let waiting = [Folder, Restore, Operator, Operator].map(|it| lanes.wait(job(it)));
            lanes.running.remove(&busy);
            for next in [2, 3, 1, 0] {
                let started: Vec<_> =
                    waiting.iter().filter(|number| lanes.try_start(**number, now)).collect();
                assert_eq!(started, [&waiting[next]]);
                lanes.running.remove(&waiting[next]);
            }
        }
    }

    #[test]
    fn what_is_slow_gives_its_place_to_who_waits_and_is_not_small_for_ever() {
        let (mut lanes, start) = (Lanes::new(6 * GIB), Instant::now());
        let running: Vec<_> = (0..4).map(|_| lanes.wait(small(Urgency::Operator))).collect();
        for (seconds, number) in (0..).zip(&running) {
            assert!(lanes.try_start(*number, start + Duration::from_millis(seconds)));
        }
        let big = lanes.wait(large(Urgency::Folder));
        assert!(lanes.try_start(big, start));
        let after = |time| start + time + Duration::from_millis(100);
        assert!(!lanes.must_yield(running[0], after(SMALL_TURN)), "nobody wants its place");
        let waiting = lanes.wait(small(Urgency::Folder));
        assert!(!lanes.try_start(waiting, start) && !lanes.must_yield(running[0], start));
        let yielding = |lanes: &Lanes, time| -> Vec<_> {
            running.iter().filter(|number| lanes.must_yield(**number, after(time))).collect()
        };
        assert_eq!(yielding(&lanes, SMALL_TURN), [&running[0]], "one for the one that waits");
        assert_eq!(yielding(&lanes, SMALL_TIME).len(), 4);
        assert!(!lanes.must_yield(big, after(SMALL_TIME)));
        lanes.running.remove(&running[0]);
        assert!(lanes.try_start(waiting, after(SMALL_TURN)));
        assert!(yielding(&lanes, SMALL_TURN).is_empty());
    }

    #[test]
    fn a_turn_ends_with_its_value() {
        let queue = CompileQueue::new(GIB);
        let turn = queue.enter(large(Urgency::Folder));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(queue.enter(large(Urgency::Operator))));
            drop(queue.enter(small(Urgency::Folder)));
            assert!(!turn.must_yield() && !waiting.is_finished());
            drop(turn);
        });
        assert!(queue.lock().running.is_empty() && queue.lock().waiting.is_empty());
    }
}
