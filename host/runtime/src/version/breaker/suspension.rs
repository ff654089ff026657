//! A suspension: requests are refused in rounds, except for a few probes in each round.

use std::time::{Duration, Instant};

use super::window::WINDOW;

/// The length of the first round. Each further round is twice as long if the probes of the last one
/// failed.
pub(super) const FIRST_ROUND: Duration = Duration::from_secs(1);

/// The length of the longest round.
pub(super) const LONGEST_ROUND: Duration = Duration::from_secs(60);

/// The probes of a round: a single one may fail by chance, and more would make the suspension
/// pointless.
pub(super) const PROBES: usize = 3;

/// The sender of a possible probe.
#[derive(Debug, Clone, Copy)]
pub(super) enum Prober {
    /// The suspended caller itself.
    Same,
    /// A member of a suspended group whose requests failed recently.
    Failed(u64),
    /// A member of a suspended group without known failures.
    New(u64),
}

/// The suspension of a caller, an API key or a version.
#[derive(Debug)]
pub(super) struct Suspension {
    /// When the current round ends.
    until: Instant,
    round: u32,
    /// The senders of this round's probes that had failed before, at most [`PROBES`].
    probed: Vec<u64>,
    /// The senders without known failures. They have a quota of their own, so that failing members
    /// cannot use up the probes of others, which may show that the version works.
    probed_new: Vec<u64>,
    /// The members whose probes failed in this round.
    failed: Vec<u64>,
    /// How many members' probes must fail for the next round to be longer.
    tolerance: usize,
}

impl Suspension {
    /// Suspend one caller. The first round has no probes.
    pub(super) fn for_caller(now: Instant) -> Self {
        let probed = vec![0; PROBES];
        Self {
            until: now + FIRST_ROUND,
            round: 0,
            probed,
            probed_new: vec![],
            failed: vec![],
            tolerance: 1,
        }
    }

    /// Suspend a group. Members without known failures may probe at once, and no single member can
    /// make a round longer.
    pub(super) fn for_several(now: Instant) -> Self {
        Self { tolerance: 2, ..Self::for_caller(now) }
    }

    /// Whether the suspension is in force. One that nobody probes ends by itself.
    pub(super) fn is_in_force(&self, now: Instant) -> bool {
        now < self.end()
    }

    /// When the suspension ends if nobody probes it.
    pub(super) fn end(&self) -> Instant {
        self.until + WINDOW
    }

    /// Whether the current round still runs.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        now < self.until
    }

    /// The time until the current round ends.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }

    /// Whether a request of this sender can be a probe. A member of a group can send one in each
    /// round.
    pub(super) fn may_probe(&self, who: Prober, now: Instant) -> bool {
        if now >= self.until {
            return true;
        }
        match who {
            Prober::Same => self.probed.len() < PROBES,
            Prober::Failed(who) => self.probed.len() < PROBES && !self.has_probed(who),
            Prober::New(who) => self.probed_new.len() < PROBES && !self.has_probed(who),
        }
    }

    fn has_probed(&self, who: u64) -> bool {
        self.probed.contains(&who) || self.probed_new.contains(&who)
    }

    /// Record a probe, and begin a new round if the last one has ended.
    pub(super) fn probe(&mut self, who: Prober, now: Instant) {
        if now >= self.until {
            if self.failed.len() >= self.tolerance {
                self.round = self.round.saturating_add(1);
            }
            self.until = now + length(self.round);
            self.probed.clear();
            self.probed_new.clear();
            self.failed.clear();
        }
        match who {
            Prober::Same => self.probed.push(0),
            Prober::Failed(who) => self.probed.push(who),
            Prober::New(who) => self.probed_new.push(who),
        }
    }

    /// Record the failure of a request; it counts once per member, and only if the member has
    /// probed.
    pub(super) fn record_failure(&mut self, who: Option<u64>) {
        let who = who.unwrap_or_default();
        if self.has_probed(who) && !self.failed.contains(&who) {
            self.failed.push(who);
        }
    }
}

fn length(round: u32) -> Duration {
    FIRST_ROUND.saturating_mul(2_u32.saturating_pow(round.min(16))).min(LONGEST_ROUND)
}
