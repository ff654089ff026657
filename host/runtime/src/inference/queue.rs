//! The queue of the inference threads: fair between versions, and bounded for each version.
//!
//! A pure data structure: the caller holds the lock and passes the time. Every version has a lane.
//! Lanes with waiting jobs take turns, whatever their length, and no lane runs more batches at once
//! than its limit. Within a lane, the most urgent job runs first, together with the jobs that can
//! share its batch.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Identifies a lane: the key of the loaded version.
pub(super) type LaneKey = u64;

/// The number of priority levels, from 1 (most urgent) to this one.
pub const PRIORITY_LEVELS: u64 = 9;

/// The priority of requests that do not set one: in the middle, so that others can be more or less
/// urgent.
pub const DEFAULT_PRIORITY: u8 = 5;

/// Every n-th turn of a lane starts with the job that has waited longest, whatever its priority. A
/// caller that marks all of its jobs as urgent gets most of a version's capacity, but not all of
/// it.
const OLDEST_FIRST_INTERVAL: u32 = 8;

/// The priority of a job within its lane; 1 runs before 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PriorityLevel(u8);

impl PriorityLevel {
    /// Convert a request's priority: 0 is the default, and values above [`PRIORITY_LEVELS`] are
    /// clamped.
    pub(super) fn from_request(priority: u64) -> Self {
        match u8::try_from(priority.min(PRIORITY_LEVELS)) {
            Ok(level @ 1..) => Self(level),
            _ => Self(DEFAULT_PRIORITY),
        }
    }
}

/// Jobs of a lane with the same key can share a batch. Jobs without a key run alone.
pub(super) type BatchKey = Option<Vec<u64>>;

/// How a job is queued.
#[derive(Debug, Clone)]
pub(super) struct QueueEntry {
    pub(super) level: PriorityLevel,
    pub(super) batch_key: BatchKey,
    pub(super) rows: u64,
    /// When the job was submitted.
    pub(super) since: Instant,
    /// Until when the job may be held back so that others can join its batch.
    pub(super) hold_until: Instant,
}

/// The limits of a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaneLimits {
    /// The most batches that may run at once.
    pub(super) max_running: usize,
    /// The most rows of one batch. A job with more rows runs alone.
    pub(super) max_rows: u64,
}

/// The waiting jobs, by lane.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    lanes: BTreeMap<LaneKey, Lane<T>>,
    /// Lanes that have a waiting job and may run another batch, in the order of their turns, each
    /// once.
    turns: VecDeque<LaneKey>,
    /// Lanes whose jobs are all held back, and until when.
    held: BTreeMap<LaneKey, Instant>,
    max_waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    /// By priority, then in the order of submission.
    waiting: BTreeMap<(PriorityLevel, u64), WaitingJob<T>>,
    limits: LaneLimits,
    running: usize,
    has_turn: bool,
    /// The number of the next job.
    next: u64,
    turns_taken: u32,
}

#[derive(Debug)]
struct WaitingJob<T> {
    entry: QueueEntry,
    job: T,
}

/// A turn of a lane: the jobs of one batch.
#[derive(Debug)]
pub(super) struct LaneTurn<T> {
    pub(super) lane: LaneKey,
    /// The jobs that run together, the most urgent first.
    pub(super) jobs: Vec<QueuedJob<T>>,
    /// Expired jobs that were removed on the way.
    pub(super) expired: Vec<T>,
    /// How long the oldest job of the lane has waited, not counting the time for which jobs are
    /// held back.
    pub(super) wait: Duration,
}

/// A job that was taken from the queue and can be returned to its position.
#[derive(Debug)]
pub(super) struct QueuedJob<T> {
    pub(super) job: T,
    pub(super) entry: QueueEntry,
    pub(super) number: u64,
}

impl<T> FairQueue<T> {
    /// Create a queue in which each lane may have `max_waiting` waiting jobs.
    pub(super) fn new(max_waiting: usize) -> Self {
        let (lanes, turns, held) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
        Self { lanes, turns, held, max_waiting }
    }

    /// Append a job to its lane. Returns the job if the lane is full.
    pub(super) fn push(
        &mut self,
        key: LaneKey,
        limits: LaneLimits,
        entry: QueueEntry,
        job: T,
    ) -> Result<(), T> {
        let lane = self.lanes.entry(key).or_insert_with(|| Lane::new(limits));
        if lane.waiting.len() >= self.max_waiting {
            return Err(job);
        }
        let number = lane.next;
        lane.next += 1;
        lane.waiting.insert((entry.level, number), WaitingJob { entry, job });
        self.schedule(key);
        Ok(())
    }

    /// Take the next batch, which counts as running until [`FairQueue::finish`]. Expired jobs that
    /// are met on the way are removed and do not count.
    pub(super) fn pop(
        &mut self,
        now: Instant,
        is_expired: impl Fn(&T) -> bool,
    ) -> Option<LaneTurn<T>> {
        self.release(now);
        let key = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&key).expect("a lane with a turn is there");
        lane.has_turn = false;
        lane.running += 1;
        let (wait, (jobs, expired)) = (lane.wait(now), lane.take(is_expired));
        self.schedule(key);
        Some(LaneTurn { lane: key, jobs, expired, wait })
    }

    /// Record the end of a batch. Jobs that have to run again are returned to their positions,
    /// before later jobs of the same priority, and are not held back.
    pub(super) fn finish(&mut self, key: LaneKey, retries: Vec<QueuedJob<T>>, now: Instant) {
        let lane = self.lanes.get_mut(&key).expect("a lane with a running batch is there");
        lane.running -= 1;
        for QueuedJob { job, mut entry, number } in retries {
            (entry.since, entry.hold_until) = (now, now);
            lane.waiting.insert((entry.level, number), WaitingJob { entry, job });
        }
        if lane.running == 0 && lane.waiting.is_empty() {
            self.lanes.remove(&key);
        } else {
            self.schedule(key);
        }
    }

    /// The number of waiting jobs of the lane.
    pub(super) fn waiting(&self, key: LaneKey) -> usize {
        self.lanes.get(&key).map_or(0, |lane| lane.waiting.len())
    }

    /// When the first of the held-back lanes is released.
    pub(super) fn next_release(&self) -> Option<Instant> {
        self.held.values().min().copied()
    }

    /// Schedule the lanes whose hold time has ended.
    fn release(&mut self, now: Instant) {
        let lanes = &mut self.lanes;
        self.held.retain(|key, until| {
            let is_held = *until > now;
            if !is_held {
                let lane = lanes.get_mut(key).expect("a lane that is held back is there");
                lane.has_turn = true;
                self.turns.push_back(*key);
            }
            is_held
        });
    }

    fn schedule(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.has_turn {
            return;
        }
        if lane.waiting.is_empty() || lane.running >= lane.limits.max_running {
            self.held.remove(&key);
        } else if let Some(until) = lane.held_until() {
            // The next `pop` checks whether the hold time has ended.
            self.held.insert(key, until);
        } else {
            self.held.remove(&key);
            lane.has_turn = true;
            self.turns.push_back(key);
        }
    }
}

impl<T> Lane<T> {
    fn new(limits: LaneLimits) -> Self {
        let waiting = BTreeMap::new();
        Self { waiting, limits, running: 0, has_turn: false, next: 0, turns_taken: 0 }
    }

    /// Until when the jobs of the lane are held back; `None` if a batch can run now.
    fn held_until(&self) -> Option<Instant> {
        let is_held = |waiting: &WaitingJob<T>| waiting.entry.hold_until > waiting.entry.since;
        if !self.waiting.values().all(is_held) {
            return None;
        }
        // A full batch is not held back any longer.
        let (_, first) = self.waiting.first_key_value()?;
        let together =
            self.waiting.values().filter(|other| other.entry.can_batch_with(&first.entry));
        let rows: u64 = together.map(|waiting| waiting.entry.rows).sum();
        if first.entry.rows.max(rows) >= self.limits.max_rows {
            return None;
        }
        self.waiting.values().map(|waiting| waiting.entry.hold_until).min()
    }

    fn wait(&self, now: Instant) -> Duration {
        let waits = self.waiting.values().map(|waiting| {
            now.saturating_duration_since(waiting.entry.hold_until.max(waiting.entry.since))
        });
        // Jobs of one priority are ordered by age.
        let levels = self.waiting.first_key_value().zip(self.waiting.last_key_value());
        let is_ordered = levels.is_none_or(|((first, _), (last, _))| first.0 == last.0);
        let waits: &mut dyn Iterator<Item = Duration> =
            if is_ordered { &mut waits.take(1) } else { &mut { waits } };
        waits.max().unwrap_or_default()
    }

    /// Take the next job and those that can share its batch.
    fn take(&mut self, is_expired: impl Fn(&T) -> bool) -> (Vec<QueuedJob<T>>, Vec<T>) {
        self.turns_taken = self.turns_taken.wrapping_add(1);
        let (mut jobs, mut expired): (Vec<QueuedJob<T>>, Vec<T>) = (Vec::new(), Vec::new());
        if self.turns_taken.is_multiple_of(OLDEST_FIRST_INTERVAL) {
            let alive = self.waiting.iter().filter(|(_, waiting)| !is_expired(&waiting.job));
            if let Some(key) = alive.map(|(key, _)| *key).min_by_key(|(_, number)| *number) {
                jobs.extend(self.remove(key));
            }
        }
        let mut after = None;
        while let Some((key, waiting)) = self.following(after) {
            after = Some(key);
            let rows: u64 = jobs.iter().map(|taken| taken.entry.rows).sum();
            if is_expired(&waiting.job) {
                expired.extend(self.remove(key).map(|taken| taken.job));
                continue;
            }
            let Some(first) = jobs.first() else {
                jobs.extend(self.remove(key));
                continue;
            };
            if first.entry.batch_key.is_none() || rows >= self.limits.max_rows {
                break;
            }
            let fits = rows.saturating_add(waiting.entry.rows) <= self.limits.max_rows;
            if fits && waiting.entry.can_batch_with(&first.entry) {
                jobs.extend(self.remove(key));
            }
        }
        (jobs, expired)
    }

    fn following(
        &self,
        after: Option<(PriorityLevel, u64)>,
    ) -> Option<((PriorityLevel, u64), &WaitingJob<T>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let begin = after.map_or(Unbounded, Excluded);
        self.waiting.range((begin, Unbounded)).next().map(|(key, waiting)| (*key, waiting))
    }

    fn remove(&mut self, key: (PriorityLevel, u64)) -> Option<QueuedJob<T>> {
        let WaitingJob { entry, job } = self.waiting.remove(&key)?;
        Some(QueuedJob { job, entry, number: key.1 })
    }
}

impl QueueEntry {
    fn can_batch_with(&self, other: &Self) -> bool {
        self.batch_key.is_some() && self.batch_key == other.batch_key
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn entry(now: Instant, priority: u64, batch_key: Option<u64>, rows: u64) -> QueueEntry {
        let (level, batch_key) =
            (PriorityLevel::from_request(priority), batch_key.map(|batch_key| vec![batch_key]));
        QueueEntry { level, batch_key, rows, since: now, hold_until: now }
    }

    fn limits(max_running: usize, max_rows: u64) -> LaneLimits {
        LaneLimits { max_running, max_rows }
    }

    fn jobs<T: Copy>(turn: &LaneTurn<T>) -> Vec<T> {
        turn.jobs.iter().map(|queued| queued.job).collect()
    }

    fn never<T>(_job: &T) -> bool {
        false
    }

    #[test]
    fn a_long_lane_does_not_delay_a_short_one() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        let mut push =
            |lane, job| queue.push(lane, limits(2, 1), entry(now, 0, Some(0), 1), job).unwrap();
        (0..50).for_each(|job| push(1, job));
        push(2, 100);
        let order: Vec<_> =
            (0..3).filter_map(|_| queue.pop(now, never)).map(|turn| turn.lane).collect();
        assert_eq!(order, [1, 2, 1]);
        assert!(queue.pop(now, never).is_none(), "lane 1 runs as many batches as it may");
        queue.finish(1, Vec::new(), now);
        assert_eq!(queue.pop(now, never).map(|turn| turn.lane), Some(1));
    }

    #[test]
    fn a_full_lane_rejects_jobs_and_others_accept_theirs() {
        let (mut queue, now) = (FairQueue::new(1), Instant::now());
        let mut push = |lane, job| queue.push(lane, limits(1, 1), entry(now, 0, None, 1), job);
        assert_eq!(push(1, "a"), Ok(()));
        assert_eq!(push(1, "b"), Err("b"));
        assert_eq!(push(2, "c"), Ok(()));
    }

    #[test]
    fn a_batch_has_one_key_and_no_more_rows_than_allowed() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        for (job, batch_key, rows) in
            [(0, Some(1), 3), (1, Some(2), 1), (2, Some(1), 6), (3, Some(1), 5), (4, None, 1)]
        {
            queue.push(7, limits(9, 8), entry(now, 0, batch_key, rows), job).unwrap();
        }
        // Jobs with too many rows, and jobs without a key, run alone.
        queue.push(7, limits(9, 8), entry(now, 0, Some(1), 100), 5).unwrap();
        let mut pop = || queue.pop(now, |job| *job == 3).map(|turn| (jobs(&turn), turn.expired));
        assert_eq!(pop(), Some((vec![0], vec![3])), "neither 2 nor 5 fits with 0");
        assert_eq!(pop(), Some((vec![1], vec![])));
        assert_eq!(pop(), Some((vec![2], vec![])));
        assert_eq!(pop(), Some((vec![4], vec![])));
        assert_eq!(pop(), Some((vec![5], vec![])));
        assert_eq!(pop(), None);
    }

    #[test]
    fn urgent_jobs_run_first_and_others_are_not_starved() {
        let (mut queue, now) = (FairQueue::new(1000), Instant::now());
        let mut push = |priority, job| {
            queue.push(1, limits(100, 1), entry(now, priority, Some(0), 1), job).unwrap()
        };
        push(u64::MAX, "least");
        push(0, "usual");
        push(6, "less");
        push(1, "most");
        push(5, "as usual");
        let order: Vec<_> = (0..5).filter_map(|_| queue.pop(now, never)).collect();
        let order: Vec<_> = order.iter().flat_map(jobs).collect();
        assert_eq!(order, ["most", "usual", "as usual", "less", "least"]);
        let mut queue = FairQueue::new(1000);
        let mut push = |priority, job| {
            queue.push(1, limits(1000, 1), entry(now, priority, Some(0), 1), job).unwrap();
        };
        push(9, "patient");
        (0..100).for_each(|_| push(1, "urgent"));
        let turn = (0..).find(|_| jobs(&queue.pop(now, never).unwrap()) == ["patient"]).unwrap();
        assert!(turn < OLDEST_FIRST_INTERVAL, "{turn}");
    }

    #[test]
    fn a_lane_waits_until_its_batch_is_full_or_due() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        let held =
            |rows| QueueEntry { hold_until: now + 5 * MILLISECOND, ..entry(now, 0, Some(0), rows) };
        queue.push(1, limits(2, 4), held(1), 0).unwrap();
        queue.push(2, limits(2, 4), entry(now, 0, Some(0), 1), 1).unwrap();
        assert_eq!(queue.pop(now, never).unwrap().lane, 2, "other lanes are not held back");
        assert!(queue.pop(now, never).is_none());
        assert_eq!(queue.next_release(), Some(now + 5 * MILLISECOND));
        queue.push(1, limits(2, 4), held(3), 2).unwrap();
        assert_eq!(jobs(&queue.pop(now, never).unwrap()), [0, 2], "it is full");
        assert_eq!(queue.next_release(), None);
        queue.push(1, limits(2, 4), held(1), 3).unwrap();
        assert!(queue.pop(now + 4 * MILLISECOND, never).is_none());
        let turn = queue.pop(now + 6 * MILLISECOND, never).unwrap();
        assert_eq!((jobs(&turn), turn.wait), (vec![3], MILLISECOND));
        // A job that runs again is not held back.
        queue.finish(1, turn.jobs, now);
        assert_eq!(jobs(&queue.pop(now, never).unwrap()), [3]);
    }

    #[test]
    fn the_reported_wait_is_that_of_the_oldest_job() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        queue.push(1, limits(2, 1), entry(now, 9, None, 1), 0).unwrap();
        let later = now + MILLISECOND;
        queue.push(1, limits(2, 1), entry(later, 1, None, 1), 1).unwrap();
        let turn = queue.pop(now + 3 * MILLISECOND, never).unwrap();
        assert_eq!((jobs(&turn), turn.wait), (vec![1], 3 * MILLISECOND));
    }

    /// A step of the property test: the action, the lane, the priority, the batch key, and the
    /// rows.
    type Step = (u8, u64, u64, Option<u64>, u64);

    proptest! {
        /// After any sequence of pushes, pops, finishes and retries: no job is lost or duplicated,
        /// no lane runs more batches than its limit, batches have one key and no more rows than
        /// allowed, no job waits that could run, and jobs of equal priority and key keep their
        /// order.
        #[test]
        fn every_job_runs_once_in_a_batch_of_its_kind(
            steps in prop::collection::vec(
                (0_u8..5, 0_u64..3, 0_u64..4, prop::option::of(0_u64..2), 1_u64..6), 1..200,
            ),
            max_running in 1_usize..4,
            max_rows in 1_u64..9,
            is_ordered in any::<bool>(),
        ) {
            let (mut queue, now) = (FairQueue::new(1000), Instant::now());
            let mut waiting: BTreeMap<LaneKey, BTreeSet<usize>> = BTreeMap::new();
            let mut running: Vec<LaneTurn<usize>> = Vec::new();
            for (number, (what, lane, priority, batch_key, rows)) in steps.into_iter().enumerate() {
                let _: Step = (what, lane, priority, batch_key, rows);
                match what {
                    0 | 1 => {
                        let priority = if is_ordered { 0 } else { priority };
                        let entry = entry(now, priority, batch_key, rows);
                        queue.push(lane, limits(max_running, max_rows), entry, number).unwrap();
                        waiting.entry(lane).or_default().insert(number);
                    }
                    2 => match queue.pop(now, never) {
                        Some(turn) => {
                            let first = &turn.jobs[0];
                            let rows: u64 = turn.jobs.iter().map(|queued| queued.entry.rows).sum();
                            prop_assert!(rows <= max_rows || turn.jobs.len() == 1);
                            let alike = |other: &QueuedJob<usize>| other.entry.can_batch_with(&first.entry);
                            prop_assert!(turn.jobs.len() == 1 || turn.jobs.iter().all(alike));
                            let lane = waiting.get_mut(&turn.lane).unwrap();
                            if is_ordered {
                                prop_assert_eq!(lane.first(), Some(&first.job));
                                prop_assert!(turn.jobs.is_sorted_by_key(|queued| queued.job));
                            }
                            for queued in &turn.jobs {
                                prop_assert!(lane.remove(&queued.job));
                            }
                            running.push(turn);
                            let share = running.iter().filter(|other| other.lane == running[running.len() - 1].lane);
                            prop_assert!(share.count() <= max_running);
                        }
                        None => for (lane, jobs) in &waiting {
                            let share = running.iter().filter(|other| other.lane == *lane).count();
                            prop_assert!(jobs.is_empty() || share == max_running);
                        },
                    },
                    _ => if let Some(turn) = running.pop() {
                        let retries = if what == 3 { Vec::new() } else { turn.jobs };
                        for queued in &retries {
                            waiting.entry(turn.lane).or_default().insert(queued.job);
                        }
                        queue.finish(turn.lane, retries, now);
                    },
                }
                for (lane, jobs) in &waiting {
                    prop_assert_eq!(queue.waiting(*lane), jobs.len());
                }
            }
        }
    }
}
