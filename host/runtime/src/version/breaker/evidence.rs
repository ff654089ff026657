//! The recent successes and failures of callers, and the suspensions that follow from them.
//!
//! A pure data structure; the caller holds the lock and passes the time. The rules:
//!
//! - A caller is suspended after [`CALLER_FAILURES`] failures in the window, if nearly all of its
//!   requests failed. Other callers with the same key are not affected.
//! - An API key is suspended when [`FAILING_MEMBERS`] of its callers are failing, and they are at
//!   least three quarters of all its callers. The suspension applies to callers without a recent
//!   success.
//! - The version is suspended when [`FAILING_KEYS`] API keys are failing, and they are at least
//!   nine tenths of all keys.
//!
//! No caller and no key contributes more than [`SHARE_OF_EVIDENCE`] of the failures that the
//! suspension of a key or a version needs.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::CallerId;
use super::suspension::{Prober, Suspension};
use super::window::Recent;
pub(super) use super::window::WINDOW;

/// The failures after which a caller is suspended; each costs an instance.
pub(super) const CALLER_FAILURES: u32 = 10;

/// A caller is only suspended if at most one in this many of its requests succeeded: several
/// clients may share a key, and one of them may be bad.
const CALLER_ANSWERS_PER_SUCCESS: u32 = 20;

/// The failures that the suspension of a key or a version needs.
const FAILURES: u32 = 10;

/// The most of these failures that one member contributes.
const SHARE_OF_EVIDENCE: u32 = 5;

/// The callers of an API key that must be failing. A client can choose its sticky key freely.
const FAILING_MEMBERS: usize = 3;

/// The API keys that must be failing.
const FAILING_KEYS: usize = 2;

/// The most callers that are recorded, a few dozen bytes each.
pub(super) const MAX_CALLERS: usize = 256;

/// Why a request is refused, and how long the caller should wait before it retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerRefusal {
    /// The version as a whole is suspended.
    Version(Duration),
    /// The caller, or its API key, is suspended.
    Caller(Duration),
}

/// What a failure has suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspensionScope {
    /// One caller.
    Caller,
    /// All callers with one API key, except those with recent successes.
    Key,
    /// The version.
    Version,
}

#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// At most [`MAX_CALLERS`].
    callers: HashMap<CallerId, CallerRecord>,
    /// The suspended API keys, by hash.
    keys: HashMap<u64, Suspension>,
    version: Option<Suspension>,
}

/// The recent history of a caller.
#[derive(Debug)]
struct CallerRecord {
    failures: Recent,
    successes: Recent,
    last: Instant,
    /// Shared batches that had to run again because of its rows.
    disturbances: Recent,
    suspension: Option<Suspension>,
}

/// The decision on a request.
enum Verdict {
    Accept,
    ProbeCaller,
    ProbeKey,
    ProbeVersion,
    Refuse(BreakerRefusal),
}

/// The failing and the healthy members of a group, and the failures that count.
#[derive(Default)]
struct Votes {
    failing: usize,
    healthy: usize,
    failures: u32,
}

impl CallerRecord {
    fn new(now: Instant) -> Self {
        let none = Recent::new(now);
        Self { failures: none, successes: none, disturbances: none, last: now, suspension: None }
    }

    fn suspension(&self, now: Instant) -> Option<&Suspension> {
        self.suspension.as_ref().filter(|suspension| suspension.is_in_force(now))
    }

    /// Whether at least half of its requests fail.
    fn is_failing(&self, now: Instant) -> bool {
        let failures = self.failures.total(now);
        let is_mostly_bad = failures > 0 && failures >= self.successes.total(now);
        is_mostly_bad || self.suspension(now).is_some()
    }

    /// Whether at least half of its requests make shared batches run again. A key that several
    /// clients share keeps batching if only one of them is bad.
    fn disturbs_batches(&self, now: Instant) -> bool {
        let disturbances = self.disturbances.total(now);
        disturbances > 0 && disturbances >= self.successes.total(now)
    }

    fn is_healthy(&self, now: Instant) -> bool {
        self.suspension(now).is_none() && self.successes.total(now) > 0
    }

    fn should_be_suspended(&self, now: Instant) -> bool {
        let (failures, successes) = (self.failures.total(now), self.successes.total(now));
        let answers = failures.saturating_add(successes);
        failures >= CALLER_FAILURES && successes <= answers / CALLER_ANSWERS_PER_SUCCESS
    }

    /// The failures that it contributes.
    fn weight(&self, now: Instant) -> u32 {
        match self.suspension(now) {
            Some(_) => SHARE_OF_EVIDENCE,
            None => self.failures.total(now).min(SHARE_OF_EVIDENCE),
        }
    }
}

impl Votes {
    fn add(&mut self, record: &CallerRecord, now: Instant) {
        if record.is_failing(now) {
            self.failing += 1;
            self.failures += record.weight(now);
        } else if record.is_healthy(now) {
            self.healthy += 1;
        }
    }

    /// Whether at least `part` out of every `whole` members are failing.
    fn are_failing(&self, part: usize, whole: usize) -> bool {
        self.failing > 0 && self.failing * whole >= (self.failing + self.healthy) * part
    }

    fn suspend_key(&self) -> bool {
        self.failing >= FAILING_MEMBERS && self.failures >= FAILURES && self.are_failing(3, 4)
    }

    fn suspend_version(&self) -> bool {
        self.failing >= FAILING_KEYS && self.failures >= FAILURES && self.are_failing(9, 10)
    }
}

impl Evidence {
    pub(super) fn refusal(&self, now: Instant) -> Option<BreakerRefusal> {
        let refuses = self.version.as_ref().filter(|version| version.refuses(now))?;
        Some(BreakerRefusal::Version(refuses.remaining(now)))
    }

    pub(super) fn check(&self, caller: CallerId, now: Instant) -> Result<(), BreakerRefusal> {
        match self.verdict(caller, now) {
            Verdict::Refuse(refusal) => Err(refusal),
            _ => Ok(()),
        }
    }

    pub(super) fn admit(&mut self, caller: CallerId, now: Instant) -> Result<(), BreakerRefusal> {
        let (suspension, who) = match self.verdict(caller, now) {
            Verdict::Accept => return Ok(()),
            Verdict::Refuse(refusal) => return Err(refusal),
            Verdict::ProbeCaller => {
                let record = self.callers.get_mut(&caller);
                (record.and_then(|record| record.suspension.as_mut()), Prober::Same)
            }
            Verdict::ProbeKey => {
                let who = self.prober(caller, caller.member(), now);
                (self.keys.get_mut(&caller.key()), who)
            }
            Verdict::ProbeVersion => {
                let who = self.prober(caller, caller.key(), now);
                (self.version.as_mut(), who)
            }
        };
        if let Some(suspension) = suspension {
            suspension.probe(who, now);
        }
        Ok(())
    }

    /// The caller as a possible sender of a probe under this name.
    fn prober(&self, caller: CallerId, name: u64, now: Instant) -> Prober {
        let record = self.callers.get(&caller);
        match record.is_some_and(|record| record.failures.total(now) > 0) {
            true => Prober::Failed(name),
            false => Prober::New(name),
        }
    }

    fn verdict(&self, caller: CallerId, now: Instant) -> Verdict {
        let record = self.callers.get(&caller);
        if let Some(suspension) = record.and_then(|record| record.suspension(now)) {
            return match suspension.may_probe(Prober::Same, now) {
                true => Verdict::ProbeCaller,
                false => Verdict::Refuse(BreakerRefusal::Caller(suspension.remaining(now))),
            };
        }
        if record.is_some_and(|record| record.is_healthy(now)) {
            return Verdict::Accept;
        }
        let in_force = |suspension: &&Suspension| suspension.is_in_force(now);
        if let Some(suspension) = self.keys.get(&caller.key()).filter(in_force) {
            return match suspension.may_probe(self.prober(caller, caller.member(), now), now) {
                true => Verdict::ProbeKey,
                false => Verdict::Refuse(BreakerRefusal::Caller(suspension.remaining(now))),
            };
        }
        match self.version.as_ref().filter(in_force) {
            None => Verdict::Accept,
            Some(suspension)
                if suspension.may_probe(self.prober(caller, caller.key(), now), now) =>
            {
                Verdict::ProbeVersion
            }
            Some(suspension) => Verdict::Refuse(BreakerRefusal::Version(suspension.remaining(now))),
        }
    }

    pub(super) fn record_success(&mut self, caller: CallerId, now: Instant) {
        let is_suspended = self.version.is_some() || self.keys.contains_key(&caller.key());
        let record = self.record(caller, now);
        // The success of a probe outweighs the history.
        if is_suspended || record.suspension.is_some() {
            *record = CallerRecord::new(now);
        }
        record.successes.add(now);
        if self.keys.contains_key(&caller.key()) && !self.votes_of(caller.key(), now).suspend_key()
        {
            self.keys.remove(&caller.key());
        }
        if self.version.is_some() && !self.votes(now).suspend_version() {
            self.version = None;
        }
    }

    pub(super) fn record_failure(
        &mut self,
        caller: CallerId,
        now: Instant,
    ) -> Option<SuspensionScope> {
        let record = self.record(caller, now);
        record.failures.add(now);
        record.disturbances.add(now);
        let mut suspended = None;
        if record.suspension(now).is_none() {
            // A suspension that ended by itself is not continued.
            record.suspension = None;
            if record.should_be_suspended(now) {
                record.suspension = Some(Suspension::for_caller(now));
                suspended = Some(SuspensionScope::Caller);
            }
        } else if let Some(suspension) = &mut record.suspension {
            suspension.record_failure(None);
        }
        self.keys.retain(|_, suspension| suspension.is_in_force(now));
        if let Some(suspension) = self.keys.get_mut(&caller.key()) {
            suspension.record_failure(Some(caller.member()));
        } else if self.votes_of(caller.key(), now).suspend_key() {
            self.keys.insert(caller.key(), Suspension::for_several(now));
            suspended = Some(SuspensionScope::Key);
        }
        match &mut self.version {
            Some(suspension) if suspension.is_in_force(now) => {
                suspension.record_failure(Some(caller.key()));
            }
            _ => {
                self.version = None;
                if self.votes(now).suspend_version() {
                    self.version = Some(Suspension::for_several(now));
                    suspended = Some(SuspensionScope::Version);
                }
            }
        }
        suspended
    }

    pub(super) fn isolate(&mut self, caller: CallerId, now: Instant) {
        self.record(caller, now).disturbances.add(now);
    }

    pub(super) fn is_isolated(&self, caller: CallerId, now: Instant) -> bool {
        self.callers.get(&caller).is_some_and(|record| record.disturbs_batches(now))
    }

    /// When all evidence will have expired, if nothing else is recorded.
    pub(super) fn end(&self, now: Instant) -> Instant {
        let of_callers = self.callers.values().filter_map(|record| record.suspension.as_ref());
        let all = of_callers.chain(self.keys.values()).chain(&self.version);
        all.map(Suspension::end).fold(now + WINDOW, Instant::max)
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.callers.len() + self.keys.len()
    }

    fn votes_of(&self, key: u64, now: Instant) -> Votes {
        let mut votes = Votes::default();
        let own = self.callers.iter().filter(|(caller, _)| caller.key() == key);
        own.for_each(|(_, record)| votes.add(record, now));
        votes
    }

    /// One vote for each API key.
    fn votes(&self, now: Instant) -> Votes {
        let mut by_key = BTreeMap::<u64, Votes>::new();
        for (caller, record) in &self.callers {
            by_key.entry(caller.key()).or_default().add(record, now);
        }
        let mut votes = Votes::default();
        for of_key in by_key.into_values() {
            if of_key.are_failing(3, 4) {
                votes.failing += 1;
                votes.failures += of_key.failures.min(SHARE_OF_EVIDENCE);
            } else if of_key.healthy > 0 {
                votes.healthy += 1;
            }
        }
        votes
    }

    fn record(&mut self, caller: CallerId, now: Instant) -> &mut CallerRecord {
        if self.callers.len() >= MAX_CALLERS && !self.callers.contains_key(&caller) {
            self.evict(now);
        }
        let record = self.callers.entry(caller).or_insert_with(|| CallerRecord::new(now));
        record.last = now;
        record
    }

    /// Evict the caller that was recorded least recently, preferably one without successes, so that
    /// many names of one failing client do not displace callers for which the version works.
    fn evict(&mut self, now: Instant) {
        let rank = |record: &CallerRecord| (record.is_healthy(now), record.last);
        let first = self.callers.iter().min_by_key(|(_, record)| rank(record));
        if let Some(caller) = first.map(|(caller, _)| *caller) {
            self.callers.remove(&caller);
        }
    }
}
