//! The queue before the inference threads: fair between versions, bounded for each of them.
//!
//! Pure data. Every version has a lane; lanes with work take turns, whatever their length, and no
//! lane has more jobs running than its share. Whoever holds the lock calls it.

use std::collections::{BTreeMap, VecDeque};

/// Names a lane; a version's own number.
pub(super) type LaneKey = u64;

/// Jobs that wait, by lane.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    lanes: BTreeMap<LaneKey, Lane<T>>,
    /// Lanes that have a job waiting and may run one more, each of them once, in turn.
    turns: VecDeque<LaneKey>,
    max_waiting: usize,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    running: usize,
    max_running: usize,
    has_turn: bool,
}

impl<T> FairQueue<T> {
    /// A queue in which each lane may have `max_waiting` jobs waiting.
    pub(super) fn new(max_waiting: usize) -> Self {
        Self { lanes: BTreeMap::new(), turns: VecDeque::new(), max_waiting }
    }

    /// Put a job into its lane, of which `max_running` may run at once, or give it back if the lane
    /// is full.
    pub(super) fn push(&mut self, key: LaneKey, max_running: usize, job: T) -> Result<(), T> {
        let new = || Lane { waiting: VecDeque::new(), running: 0, max_running, has_turn: false };
        let lane = self.lanes.entry(key).or_insert_with(new);
        if lane.waiting.len() >= self.max_waiting {
            return Err(job);
        }
        lane.waiting.push_back(job);
        self.give_turn(key);
        Ok(())
    }

    /// The next job; it runs until [`FairQueue::finish`].
    pub(super) fn pop(&mut self) -> Option<(LaneKey, T)> {
        let key = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&key).expect("a lane with a turn is there");
        lane.has_turn = false;
        lane.running += 1;
        let job = lane.waiting.pop_front().expect("a lane with a turn has a job");
        self.give_turn(key);
        Some((key, job))
    }

    /// A job of the lane runs no more.
    pub(super) fn finish(&mut self, key: LaneKey) {
        let lane = self.lanes.get_mut(&key).expect("a lane with a running job is there");
        lane.running -= 1;
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

    fn give_turn(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        if !lane.has_turn && !lane.waiting.is_empty() && lane.running < lane.max_running {
            lane.has_turn = true;
            self.turns.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_lane_does_not_hold_up_a_short_one() {
        let mut queue = FairQueue::new(100);
        (0..50).for_each(|job| queue.push(1, 2, job).unwrap());
        queue.push(2, 2, 100).unwrap();
        let order: Vec<_> = (0..3).filter_map(|_| queue.pop()).map(|(lane, _)| lane).collect();
        assert_eq!(order, [1, 2, 1]);
        assert!(queue.pop().is_none(), "lane 1 has its share running");
        queue.finish(1);
        assert_eq!(queue.pop().map(|(lane, _)| lane), Some(1));
    }

    #[test]
    fn a_full_lane_gives_jobs_back_and_others_take_theirs() {
        let mut queue = FairQueue::new(1);
        assert_eq!(queue.push(1, 1, "a"), Ok(()));
        assert_eq!(queue.push(1, 1, "b"), Err("b"));
        assert_eq!(queue.push(2, 1, "c"), Ok(()));
    }

    proptest! {
        /// Random pushes, pops and ends: nothing is lost, doubled or reordered within its lane, no
        /// lane runs more than its share, and nothing waits while it could run.
        #[test]
        fn every_job_runs_once_in_its_lanes_order(
            steps in prop::collection::vec((0_u8..3, 0_u64..4), 1..200),
            max_running in 1_usize..4,
        ) {
            let mut queue = FairQueue::new(1000);
            let mut waiting: BTreeMap<LaneKey, VecDeque<usize>> = BTreeMap::new();
            let mut running: Vec<LaneKey> = Vec::new();
            for (number, (what, lane)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        prop_assert!(queue.push(lane, max_running, number).is_ok());
                        waiting.entry(lane).or_default().push_back(number);
                    }
                    1 => match queue.pop() {
                        Some((lane, job)) => {
                            prop_assert_eq!(waiting.get_mut(&lane).unwrap().pop_front(), Some(job));
                            running.push(lane);
                            let share = running.iter().filter(|other| **other == lane).count();
                            prop_assert!(share <= max_running);
                        }
                        None => for (lane, jobs) in &waiting {
                            let share = running.iter().filter(|other| *other == lane).count();
                            prop_assert!(jobs.is_empty() || share == max_running);
                        },
                    },
                    _ => if let Some(lane) = running.pop() {
                        queue.finish(lane);
                    },
                }
            }
        }
    }
}
