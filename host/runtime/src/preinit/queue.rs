//! The queue of artifacts that wait to be compiled.
//!
//! Compilation is the only slow part of loading, so it is the only part with a queue. Small
//! artifacts have slots of their own and do not wait for large ones. A small artifact that turns
//! out to be slow gives up its slot and is compiled again as a large one. Within each lane,
//! artifacts are ordered by priority.
//!
//! Memory is bounded by the limits of the children: the child of a large artifact may use all of
//! `preinit_memory_mib`, and the children of small artifacts together the same amount.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The size of the largest artifact that counts as small, in bytes, including assets. Guests
/// without an inference library have a few hundred KiB and compile in a second; those with one have
/// tens of MiB.
pub const SMALL_ARTIFACT_BYTES: u64 = 1 << 20;

/// The most small artifacts that are compiled at once. They share the cores, so more would only
/// slow each other down.
const MAX_SMALL: usize = 4;

/// The memory for compiling a small artifact besides the guest's own memory, in bytes. A guest of 1
/// MiB takes a fifth of this.
const SMALL_COMPILER_BYTES: u64 = 512 << 20;

/// How long a small artifact may keep its slot while others wait.
const SMALL_TURN: Duration = Duration::from_secs(1);

/// How long a small artifact may take even if no others wait.
const SMALL_TIME: Duration = Duration::from_secs(10);

/// The priority of a compilation, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompilePriority {
    /// A file in the repository folder.
    Folder,
    /// A version that was served before a restart.
    Restore,
    /// A deployment by an operator, who waits for it.
    Operator,
}

/// An artifact to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileJob {
    urgency: CompilePriority,
    is_small: bool,
    memory_bytes: u64,
}

impl CompileJob {
    /// Create the job for an artifact of this size, with the memory limits of its guest and of a
    /// child.
    pub fn new(
        urgency: CompilePriority,
        artifact_bytes: u64,
        guest_bytes: u64,
        child_bytes: u64,
    ) -> Self {
        let job = Self { urgency, is_small: false, memory_bytes: child_bytes };
        let small_bytes = guest_bytes.saturating_add(SMALL_COMPILER_BYTES).min(child_bytes);
        if artifact_bytes <= SMALL_ARTIFACT_BYTES {
            Self { is_small: true, memory_bytes: small_bytes, ..job }
        } else {
            job
        }
    }

    /// The same job in the lane of large artifacts, with the full memory limit of a child.
    pub fn as_large(self, child_bytes: u64) -> Self {
        Self { is_small: false, memory_bytes: child_bytes, ..self }
    }

    /// Whether the job is in the lane of small artifacts.
    pub fn is_small(self) -> bool {
        self.is_small
    }

    /// The memory limit of its child, in bytes.
    pub fn memory_bytes(self) -> u64 {
        self.memory_bytes
    }
}

/// The artifacts that are being compiled and those that wait. Each entry is a waiting thread, so
/// their number is bounded by the numbers of operations, loads by name, and folder workers.
#[derive(Debug)]
pub struct CompileQueue {
    lanes: Mutex<Lanes>,
    changed: Condvar,
}

/// A permit to compile, released when it is dropped.
#[derive(Debug)]
pub struct CompilePermit<'a> {
    queue: &'a CompileQueue,
    number: u64,
}

impl CompileQueue {
    /// Create a queue whose small artifacts may use this much memory together.
    pub fn new(memory_bytes: u64) -> Self {
        Self { lanes: Mutex::new(Lanes::new(memory_bytes)), changed: Condvar::new() }
    }

    /// Wait for a permit.
    pub fn acquire(&self, job: CompileJob) -> CompilePermit<'_> {
        let mut lanes = self.lock();
        let number = lanes.push(job);
        while !lanes.try_start(number, Instant::now()) {
            lanes = self.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner);
        }
        drop(lanes);
        // The next job may be able to start as well.
        self.changed.notify_all();
        CompilePermit { queue: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CompilePermit<'_> {
    /// Whether the compilation has to stop and start again as a large one.
    pub fn must_yield(&self) -> bool {
        self.queue.lock().must_yield(self.number, Instant::now())
    }
}

impl Drop for CompilePermit<'_> {
    fn drop(&mut self) {
        self.queue.lock().running.remove(&self.number);
        self.queue.changed.notify_all();
    }
}

/// The waiting and the running jobs, by number in the order of arrival.
#[derive(Debug)]
struct Lanes {
    memory_bytes: u64,
    next: u64,
    waiting: BTreeMap<u64, CompileJob>,
    running: BTreeMap<u64, (CompileJob, Instant)>,
}

impl Lanes {
    fn new(memory_bytes: u64) -> Self {
        Self { memory_bytes, next: 0, waiting: BTreeMap::new(), running: BTreeMap::new() }
    }

    fn push(&mut self, job: CompileJob) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, job);
        number
    }

    /// Start the job if it is its turn; returns whether it was started.
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

    fn has_room(&self, job: CompileJob) -> bool {
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
        let others_wait = self.waiting.values().any(|job| job.is_small);
        let oldest = small().min_by_key(|(number, (_, since))| (*since, **number));
        let is_oldest = oldest.is_some_and(|(oldest, _)| *oldest == number);
        time >= SMALL_TIME || others_wait && is_oldest && time >= SMALL_TURN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn small(urgency: CompilePriority) -> CompileJob {
        CompileJob::new(urgency, 5 << 10, GIB, 6 * GIB)
    }

    fn large(urgency: CompilePriority) -> CompileJob {
        CompileJob::new(urgency, 20 << 20, GIB, 6 * GIB)
    }

    #[test]
    fn small_artifacts_are_compiled_beside_one_large_one() {
        let (mut lanes, now) = (Lanes::new(6 * GIB), Instant::now());
        let first = lanes.push(large(CompilePriority::Folder));
        assert!(lanes.try_start(first, now));
        let second = lanes.push(large(CompilePriority::Operator));
        assert!(!lanes.try_start(second, now));
        for _ in 0..MAX_SMALL {
            let one = lanes.push(small(CompilePriority::Folder));
            assert!(lanes.try_start(one, now));
        }
        let more = lanes.push(small(CompilePriority::Operator));
        assert!(!lanes.try_start(more, now));
        lanes.running.remove(&first);
        assert!(lanes.try_start(second, now) && !lanes.try_start(more, now));
    }

    #[test]
    fn small_children_share_the_memory_of_a_large_one() {
        let mut lanes = Lanes::new(6 * GIB);
        let half = CompileJob::new(CompilePriority::Folder, 1, 3 * GIB, 6 * GIB);
        let [one, other] = [half, half].map(|job| lanes.push(job));
        assert!(lanes.try_start(one, Instant::now()) && !lanes.try_start(other, Instant::now()));
        let (job, most) = (CompileJob::new(CompilePriority::Folder, 1, 9 * GIB, 6 * GIB), 6 * GIB);
        assert_eq!(job.memory_bytes(), most, "a child has its own limit at most");
        assert_eq!(small(CompilePriority::Folder).as_large(most), large(CompilePriority::Folder));
    }

    #[test]
    fn jobs_start_by_priority_and_then_by_arrival() {
        for job in [small, large] {
            let (mut lanes, now) = (Lanes::new(GIB), Instant::now());
            let busy = lanes.push(job(CompilePriority::Folder));
            assert!(lanes.try_start(busy, now));
            use CompilePriority::{Folder, Operator, Restore};
            let waiting = [Folder, Restore, Operator, Operator].map(|it| lanes.push(job(it)));
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
    fn slow_small_jobs_yield_to_waiting_ones() {
        let (mut lanes, start) = (Lanes::new(6 * GIB), Instant::now());
        let running: Vec<_> =
            (0..4).map(|_| lanes.push(small(CompilePriority::Operator))).collect();
        for (seconds, number) in (0..).zip(&running) {
            assert!(lanes.try_start(*number, start + Duration::from_millis(seconds)));
        }
        let big = lanes.push(large(CompilePriority::Folder));
        assert!(lanes.try_start(big, start));
        let after = |time| start + time + Duration::from_millis(100);
        assert!(!lanes.must_yield(running[0], after(SMALL_TURN)), "no job waits for its slot");
        let waiting = lanes.push(small(CompilePriority::Folder));
        assert!(!lanes.try_start(waiting, start) && !lanes.must_yield(running[0], start));
        let yielding = |lanes: &Lanes, time| -> Vec<_> {
            running.iter().filter(|number| lanes.must_yield(**number, after(time))).collect()
        };
        assert_eq!(yielding(&lanes, SMALL_TURN), [&running[0]], "one yields for each waiting job");
        assert_eq!(yielding(&lanes, SMALL_TIME).len(), 4);
        assert!(!lanes.must_yield(big, after(SMALL_TIME)));
        lanes.running.remove(&running[0]);
        assert!(lanes.try_start(waiting, after(SMALL_TURN)));
        assert!(yielding(&lanes, SMALL_TURN).is_empty());
    }

    #[test]
    fn a_permit_is_released_when_dropped() {
        let queue = CompileQueue::new(GIB);
        let permit = queue.acquire(large(CompilePriority::Folder));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(queue.acquire(large(CompilePriority::Operator))));
            drop(queue.acquire(small(CompilePriority::Folder)));
            assert!(!permit.must_yield() && !waiting.is_finished());
            drop(permit);
        });
        assert!(queue.lock().running.is_empty() && queue.lock().waiting.is_empty());
    }
}
