//! A time in which requests are refused, but for a few probes in each round of it.

use std::time::{Duration, Instant};

use super::window::WINDOW;

/// The first round; each further one is twice as long if probes failed in the one before.
pub(super) const FIRST_ROUND: Duration = Duration::from_secs(1);

/// The longest round.
pub(super) const LONGEST_ROUND: Duration = Duration::from_secs(60);

/// Requests that are accepted in a round: one may be bad by chance, and more would make a suspension
/// pointless.
pub(super) const PROBES: usize = 3;

/// Who sends a probe.
#[derive(Debug, Clone, Copy)]
pub(super) enum Prober {
    /// The one caller that is suspended.
    Same,
    /// One of several, whose requests failed lately.
    Failed(u64),
    /// One of several, of whom no failure is known.
    New(u64),
}

/// A caller, an API key or a version is suspended.
#[derive(Debug)]
pub(super) struct Suspension {
    /// When the next round may begin.
    until: Instant,
    round: u32,
    /// Who sent the probes of this round: those that failed before, at most [`PROBES`].
    probed: Vec<u64>,
    /// The same for those of which no failure is known. They have their own, so that those that fail
    /// leave room for others that may show that the version works.
    probed_new: Vec<u64>,
    /// Whose probes of this round failed.
    failed: Vec<u64>,
    /// How many have to fail for the next round to be longer.
    tolerance: usize,
}

impl Suspension {
    /// Of one caller, whose next requests are refused.
    pub(super) fn of_caller(now: Instant) -> Self {
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

    /// Of several, of whom those that have not been heard of yet are probed at once. No single one of
    /// them makes a round longer.
    pub(super) fn of_several(now: Instant) -> Self {
        Self { tolerance: 2, ..Self::of_caller(now) }
    }

    /// Whether it is still in force. A suspension that nobody probes ends by itself.
    pub(super) fn is_in_force(&self, now: Instant) -> bool {
        now < self.end()
    }

    /// When it ends by itself.
    pub(super) fn end(&self) -> Instant {
        self.until + WINDOW
    }

    /// Whether it is a time in which requests are refused.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        now < self.until
    }

    /// How long it is until the next round.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }

    /// Whether a request of this one could be a probe: of a caller any, of several only those that
    /// have not sent one in this round.
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

    /// A request of this one is a probe.
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

    /// A request of this one failed; it counts once if it was a probe.
    pub(super) fn failed(&mut self, who: Option<u64>) {
        let who = who.unwrap_or_default();
        if self.has_probed(who) && !self.failed.contains(&who) {
            self.failed.push(who);
        }
    }
}

fn length(round: u32) -> Duration {
    FIRST_ROUND.saturating_mul(2_u32.saturating_pow(round.min(16))).min(LONGEST_ROUND)
}
