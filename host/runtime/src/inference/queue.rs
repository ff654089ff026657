//! The queue before the inference threads: fair between versions, bounded for each of them.
//!
//! Pure data. Every version has a lane; lanes with work take turns, whatever their length, and no
//! lane has more batches running than its share. Within a lane, the most urgent job comes first and
//! takes along what can be run with it. Whoever holds the lock calls it, and says what time it is.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Names a lane; a version's own number.
pub(super) type LaneKey = u64;

/// How many levels of urgency there are: 1, the most urgent, to this one.
pub const LEVELS: u64 = 9;

/// The level of whoever says nothing: in the middle, so that others can be more and less urgent.
pub const DEFAULT_LEVEL: u8 = 5;

/// Each so-manieth turn of a lane begins with the job that has waited longest, however urgent others
/// are: whoever calls all of its work urgent takes most of a version, and not all of it.
const TURNS_BY_AGE: u32 = 8;

/// How urgent a job is in its lane: 1 comes before 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Level(u8);

impl Level {
    /// By a caller's word: 0 says nothing, and what is beyond the least urgent level is that one.
    pub(super) fn of(priority: u64) -> Self {
        match u8::try_from(priority.min(LEVELS)) {
            Ok(level @ 1..) => Self(level),
            _ => Self(DEFAULT_LEVEL),
        }
    }
}

/// What jobs must have in common to be run together, beside their lane. Jobs without it run alone.
pub(super) type Group = Option<Vec<u64>>;

/// What the queue must know of a job.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) level: Level,
    pub(super) group: Group,
    pub(super) rows: u64,
    /// When it came.
    pub(super) since: Instant,
    /// Until when it may be held back for others to join it.
    pub(super) hold_until: Instant,
}

/// What holds for the jobs of a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Batches that may run at once.
    pub(super) max_running: usize,
    /// Rows of one batch. A job with more is a batch of its own.
    pub(super) max_rows: u64,
}

/// Jobs that wait, by lane.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    lanes: BTreeMap<LaneKey, Lane<T>>,
    /// Lanes that have a job waiting and may run one more, each of them once, in turn.
    turns: VecDeque<LaneKey>,
    /// Lanes that would have a turn if their jobs were not held back, and until when those are.
    held: BTreeMap<LaneKey, Instant>,
    max_waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    /// By urgency, then in the order in which they came.
    waiting: BTreeMap<(Level, u64), Waiting<T>>,
    rules: Rules,
    running: usize,
    has_turn: bool,
    /// The number of the next job.
    next: u64,
    turns_taken: u32,
}

#[derive(Debug)]
struct Waiting<T> {
    place: Place,
    job: T,
}

/// A turn of a lane.
#[derive(Debug)]
pub(super) struct Turn<T> {
    pub(super) lane: LaneKey,
    /// What can be run together, with its place, the most urgent first.
    pub(super) jobs: Vec<Queued<T>>,
    /// Jobs that were found to be over.
    pub(super) over: Vec<T>,
    /// For how long the oldest job of the lane has waited, beyond what jobs are held back for.
    pub(super) wait: Duration,
}

/// A job that has left the queue, and can go back to where it was.
#[derive(Debug)]
pub(super) struct Queued<T> {
    pub(super) job: T,
    pub(super) place: Place,
    pub(super) number: u64,
}

impl<T> FairQueue<T> {
    /// A queue in which each lane may have `max_waiting` jobs waiting.
    pub(super) fn new(max_waiting: usize) -> Self {
        let (lanes, turns, held) = (BTreeMap::new(), VecDeque::new(), BTreeMap::new());
        Self { lanes, turns, held, max_waiting }
    }

    /// Put a job into its lane, or give it back if the lane is full.
    pub(super) fn push(
        &mut self,
        key: LaneKey,
        rules: Rules,
        place: Place,
        job: T,
    ) -> Result<(), T> {
        let lane = self.lanes.entry(key).or_insert_with(|| Lane::new(rules));
        if lane.waiting.len() >= self.max_waiting {
            return Err(job);
        }
        let number = lane.next;
        lane.next += 1;
        lane.waiting.insert((place.level, number), Waiting { place, job });
        self.give_turn(key);
        Ok(())
    }

    /// The next batch; it runs until [`FairQueue::finish`]. Jobs that are over come along where they
    /// are met and count for nothing.
    pub(super) fn pop(&mut self, now: Instant, is_over: impl Fn(&T) -> bool) -> Option<Turn<T>> {
        self.release(now);
        let key = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&key).expect("a lane with a turn is there");
        lane.has_turn = false;
        lane.running += 1;
        let (wait, (jobs, over)) = (lane.wait(now), lane.take(is_over));
        self.give_turn(key);
        Some(Turn { lane: key, jobs, over, wait })
    }

    /// A batch of the lane runs no more. Those of its jobs that are to be run again come first among
    /// their equals, because they have waited longest, and are not held back.
    pub(super) fn finish(&mut self, key: LaneKey, again: Vec<Queued<T>>, now: Instant) {
        let lane = self.lanes.get_mut(&key).expect("a lane with a running batch is there");
        lane.running -= 1;
        for Queued { job, mut place, number } in again {
            (place.since, place.hold_until) = (now, now);
            lane.waiting.insert((place.level, number), Waiting { place, job });
        }
        if lane.running == 0 && lane.waiting.is_empty() {
            self.lanes.remove(&key);
        } else {
            self.give_turn(key);
        }
    }

    /// How many jobs wait in the lane.
    pub(super) fn waiting(&self, key: LaneKey) -> usize {
        self.lanes.get(&key).map_or(0, |lane| lane.waiting.len())
    }

    /// When the first of the lanes that are held back gets its turn.
    pub(super) fn next_release(&self) -> Option<Instant> {
        self.held.values().min().copied()
    }

    /// Give their turns to lanes that have been held back for long enough.
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

    fn give_turn(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if lane.has_turn {
            return;
        }
        if lane.waiting.is_empty() || lane.running >= lane.rules.max_running {
            self.held.remove(&key);
        } else if let Some(until) = lane.held_until() {
            // Whether that is over is seen by whoever asks for a turn.
            self.held.insert(key, until);
        } else {
            self.held.remove(&key);
            lane.has_turn = true;
            self.turns.push_back(key);
        }
    }
}

impl<T> Lane<T> {
    fn new(rules: Rules) -> Self {
        let waiting = BTreeMap::new();
        Self { waiting, rules, running: 0, has_turn: false, next: 0, turns_taken: 0 }
    }

    /// Until when its jobs are held back, if they are.
    fn held_until(&self) -> Option<Instant> {
        let is_held = |waiting: &Waiting<T>| waiting.place.hold_until > waiting.place.since;
        if !self.waiting.values().all(is_held) {
            return None;
        }
        // What a batch could have more than that only makes others wait.
        let (_, first) = self.waiting.first_key_value()?;
        let together = self.waiting.values().filter(|other| other.place.joins(&first.place));
        let rows: u64 = together.map(|waiting| waiting.place.rows).sum();
        if first.place.rows.max(rows) >= self.rules.max_rows {
            return None;
        }
        self.waiting.values().map(|waiting| waiting.place.hold_until).min()
    }

    fn wait(&self, now: Instant) -> Duration {
        let waits = self.waiting.values().map(|waiting| {
            now.saturating_duration_since(waiting.place.hold_until.max(waiting.place.since))
        });
        // All of one level are in the order of their age.
        let levels = self.waiting.first_key_value().zip(self.waiting.last_key_value());
        let is_ordered = levels.is_none_or(|((first, _), (last, _))| first.0 == last.0);
        let waits: &mut dyn Iterator<Item = Duration> =
            if is_ordered { &mut waits.take(1) } else { &mut { waits } };
        waits.max().unwrap_or_default()
    }

    /// Who is to run next, and what can be run with it.
    fn take(&mut self, is_over: impl Fn(&T) -> bool) -> (Vec<Queued<T>>, Vec<T>) {
        self.turns_taken = self.turns_taken.wrapping_add(1);
        let (mut jobs, mut over): (Vec<Queued<T>>, Vec<T>) = (Vec::new(), Vec::new());
        if self.turns_taken.is_multiple_of(TURNS_BY_AGE) {
            let alive = self.waiting.iter().filter(|(_, waiting)| !is_over(&waiting.job));
            if let Some(key) = alive.map(|(key, _)| *key).min_by_key(|(_, number)| *number) {
                jobs.extend(self.remove(key));
            }
        }
        let mut after = None;
        while let Some((key, waiting)) = self.following(after) {
            after = Some(key);
            let rows: u64 = jobs.iter().map(|taken| taken.place.rows).sum();
            if is_over(&waiting.job) {
                over.extend(self.remove(key).map(|taken| taken.job));
                continue;
            }
            let Some(first) = jobs.first() else {
                jobs.extend(self.remove(key));
                continue;
            };
            if first.place.group.is_none() || rows >= self.rules.max_rows {
                break;
            }
            let fits = rows.saturating_add(waiting.place.rows) <= self.rules.max_rows;
            if fits && waiting.place.joins(&first.place) {
                jobs.extend(self.remove(key));
            }
        }
        (jobs, over)
    }

    fn following(&self, after: Option<(Level, u64)>) -> Option<((Level, u64), &Waiting<T>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let begin = after.map_or(Unbounded, Excluded);
        self.waiting.range((begin, Unbounded)).next().map(|(key, waiting)| (*key, waiting))
    }

    fn remove(&mut self, key: (Level, u64)) -> Option<Queued<T>> {
        let Waiting { place, job } = self.waiting.remove(&key)?;
        Some(Queued { job, place, number: key.1 })
    }
}

impl Place {
    fn joins(&self, other: &Self) -> bool {
        self.group.is_some() && self.group == other.group
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn place(now: Instant, priority: u64, group: Option<u64>, rows: u64) -> Place {
        let (level, group) = (Level::of(priority), group.map(|group| vec![group]));
        Place { level, group, rows, since: now, hold_until: now }
    }

    fn rules(max_running: usize, max_rows: u64) -> Rules {
        Rules { max_running, max_rows }
    }

    fn jobs<T: Copy>(turn: &Turn<T>) -> Vec<T> {
        turn.jobs.iter().map(|queued| queued.job).collect()
    }

    fn never<T>(_job: &T) -> bool {
        false
    }

    #[test]
    fn a_long_lane_does_not_hold_up_a_short_one() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        let mut push =
            |lane, job| queue.push(lane, rules(2, 1), place(now, 0, Some(0), 1), job).unwrap();
        (0..50).for_each(|job| push(1, job));
        push(2, 100);
        let order: Vec<_> =
            (0..3).filter_map(|_| queue.pop(now, never)).map(|turn| turn.lane).collect();
        assert_eq!(order, [1, 2, 1]);
        assert!(queue.pop(now, never).is_none(), "lane 1 has its share running");
        queue.finish(1, Vec::new(), now);
        assert_eq!(queue.pop(now, never).map(|turn| turn.lane), Some(1));
    }

    #[test]
    fn a_full_lane_gives_jobs_back_and_others_take_theirs() {
        let (mut queue, now) = (FairQueue::new(1), Instant::now());
        let mut push = |lane, job| queue.push(lane, rules(1, 1), place(now, 0, None, 1), job);
        assert_eq!(push(1, "a"), Ok(()));
        assert_eq!(push(1, "b"), Err("b"));
        assert_eq!(push(2, "c"), Ok(()));
    }

    #[test]
    fn a_batch_is_what_fits_by_rows_and_by_group() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        for (job, group, rows) in
            [(0, Some(1), 3), (1, Some(2), 1), (2, Some(1), 6), (3, Some(1), 5), (4, None, 1)]
        {
            queue.push(7, rules(9, 8), place(now, 0, group, rows), job).unwrap();
        }
        // More than a batch may have, and what is alone, are batches by themselves.
        queue.push(7, rules(9, 8), place(now, 0, Some(1), 100), 5).unwrap();
        let mut pop = || queue.pop(now, |job| *job == 3).map(|turn| (jobs(&turn), turn.over));
        assert_eq!(pop(), Some((vec![0], vec![3])), "neither 2 nor 5 fits with 0");
        assert_eq!(pop(), Some((vec![1], vec![])));
        assert_eq!(pop(), Some((vec![2], vec![])));
        assert_eq!(pop(), Some((vec![4], vec![])));
        assert_eq!(pop(), Some((vec![5], vec![])));
        assert_eq!(pop(), None);
    }

    #[test]
    fn urgent_jobs_come_first_and_others_come_at_last() {
        let (mut queue, now) = (FairQueue::new(1000), Instant::now());
        let mut push = |priority, job| {
            queue.push(1, rules(100, 1), place(now, priority, Some(0), 1), job).unwrap()
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
            queue.push(1, rules(1000, 1), place(now, priority, Some(0), 1), job).unwrap();
        };
        push(9, "patient");
        (0..100).for_each(|_| push(1, "urgent"));
        let turn = (0..).find(|_| jobs(&queue.pop(now, never).unwrap()) == ["patient"]).unwrap();
        assert!(turn < TURNS_BY_AGE, "{turn}");
    }

    #[test]
    fn a_lane_is_held_back_until_its_batch_is_full_or_due() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        let held =
            |rows| Place { hold_until: now + 5 * MILLISECOND, ..place(now, 0, Some(0), rows) };
        queue.push(1, rules(2, 4), held(1), 0).unwrap();
        queue.push(2, rules(2, 4), place(now, 0, Some(0), 1), 1).unwrap();
        assert_eq!(queue.pop(now, never).unwrap().lane, 2, "others go on meanwhile");
        assert!(queue.pop(now, never).is_none());
        assert_eq!(queue.next_release(), Some(now + 5 * MILLISECOND));
        queue.push(1, rules(2, 4), held(3), 2).unwrap();
        assert_eq!(jobs(&queue.pop(now, never).unwrap()), [0, 2], "it is full");
        assert_eq!(queue.next_release(), None);
        queue.push(1, rules(2, 4), held(1), 3).unwrap();
        assert!(queue.pop(now + 4 * MILLISECOND, never).is_none());
        let turn = queue.pop(now + 6 * MILLISECOND, never).unwrap();
        assert_eq!((jobs(&turn), turn.wait), (vec![3], MILLISECOND));
        // What is run again waits for nobody.
        queue.finish(1, turn.jobs, now);
        assert_eq!(jobs(&queue.pop(now, never).unwrap()), [3]);
    }

    #[test]
    fn a_wait_is_that_of_the_oldest_whoever_comes_first() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        queue.push(1, rules(2, 1), place(now, 9, None, 1), 0).unwrap();
        let later = now + MILLISECOND;
        queue.push(1, rules(2, 1), place(later, 1, None, 1), 1).unwrap();
        let turn = queue.pop(now + 3 * MILLISECOND, never).unwrap();
        assert_eq!((jobs(&turn), turn.wait), (vec![1], 3 * MILLISECOND));
    }

    /// A step of the property: what, in which lane, how urgent, of which group, with how many rows.
    type Step = (u8, u64, u64, Option<u64>, u64);

    proptest! {
        /// Random pushes, pops, ends and repetitions: nothing is lost or doubled, no lane runs more
        /// than its share, batches are of one group and no larger than they may be, nothing waits
        /// that could run, and where all are equal nobody is overtaken in its group.
        #[test]
        fn every_job_runs_in_a_batch_of_its_kind(
            steps in prop::collection::vec(
                (0_u8..5, 0_u64..3, 0_u64..4, prop::option::of(0_u64..2), 1_u64..6), 1..200,
            ),
            max_running in 1_usize..4,
            max_rows in 1_u64..9,
            is_ordered in any::<bool>(),
        ) {
            let (mut queue, now) = (FairQueue::new(1000), Instant::now());
            let mut waiting: BTreeMap<LaneKey, BTreeSet<usize>> = BTreeMap::new();
            let mut running: Vec<Turn<usize>> = Vec::new();
            for (number, (what, lane, priority, group, rows)) in steps.into_iter().enumerate() {
                let _: Step = (what, lane, priority, group, rows);
                match what {
                    0 | 1 => {
                        let priority = if is_ordered { 0 } else { priority };
                        let place = place(now, priority, group, rows);
                        queue.push(lane, rules(max_running, max_rows), place, number).unwrap();
                        waiting.entry(lane).or_default().insert(number);
                    }
                    2 => match queue.pop(now, never) {
                        Some(turn) => {
                            let first = &turn.jobs[0];
                            let rows: u64 = turn.jobs.iter().map(|queued| queued.place.rows).sum();
                            prop_assert!(rows <= max_rows || turn.jobs.len() == 1);
                            let alike = |other: &Queued<usize>| other.place.joins(&first.place);
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
                        let again = if what == 3 { Vec::new() } else { turn.jobs };
                        for queued in &again {
                            waiting.entry(turn.lane).or_default().insert(queued.job);
                        }
                        queue.finish(turn.lane, again, now);
                    },
                }
                for (lane, jobs) in &waiting {
                    prop_assert_eq!(queue.waiting(*lane), jobs.len());
                }
            }
        }
    }
}
