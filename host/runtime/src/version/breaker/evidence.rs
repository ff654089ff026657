//! Who was answered and who made a version fail, and what follows from it.
//!
//! Pure data; whoever holds the lock says what time it is. Three rules:
//!
//! - A caller is suspended after [`CALLER_FAILURES`] failures in the window, if nearly all of its
//!   requests failed. Others behind the same key are not concerned.
//! - An API key is suspended when [`FAILING_MEMBERS`] callers that the sticky key tells apart are
//!   failing, and three quarters of all its callers. It applies to those that were not answered lately.
//! - The version is suspended when [`FAILING_KEYS`] API keys are failing, and nine tenths of all keys.
//!
//! No caller, and no key, counts for more than [`SHARE_OF_EVIDENCE`] of the failures that a
//! suspension of several needs.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::CallerId;
use super::suspension::{Prober, Suspension};
use super::window::Recent;
pub(super) use super::window::WINDOW;

/// Failures of a caller until it is suspended: it costs an instance each time.
pub(super) const CALLER_FAILURES: u32 = 10;

/// Of so many answers of a caller, at most one was good: a caller may be a crowd behind one key, of
/// which one member is bad.
const CALLER_ANSWERS_PER_SUCCESS: u32 = 20;

/// Failures that a suspension of several needs.
const FAILURES: u32 = 10;

/// The most of them that are held against one member.
const SHARE_OF_EVIDENCE: u32 = 5;

/// Callers of one API key that must be failing. A client chooses its sticky key as it likes.
const FAILING_MEMBERS: usize = 3;

/// API keys that must be failing.
const FAILING_KEYS: usize = 2;

/// Callers of which something is kept: a few dozen bytes each.
pub(super) const MAX_CALLERS: usize = 256;

/// Why a request is not accepted, and after which time it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The version as a whole is suspended.
    Version(Duration),
    /// The caller's own requests keep failing.
    Caller(Duration),
}

/// What is suspended from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspended {
    /// One caller.
    Caller,
    /// Those with one API key, but for callers that were answered lately.
    Key,
    /// The version.
    Version,
}

#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// At most [`MAX_CALLERS`].
    callers: HashMap<CallerId, Record>,
    /// By API key; each had several callers here when it was suspended.
    keys: HashMap<u64, Suspension>,
    version: Option<Suspension>,
}

/// What is known of a caller.
#[derive(Debug)]
struct Record {
    failures: Recent,
    successes: Recent,
    last: Instant,
    /// Calls that failed for others as well, because of its rows.
    disturbances: Recent,
    suspension: Option<Suspension>,
}

/// How a request is dealt with.
enum Verdict {
    Accept,
    ProbeCaller,
    ProbeKey,
    ProbeVersion,
    Refuse(Refusal),
}

/// Members that are failing and that are not, and what is held against them.
#[derive(Default)]
struct Votes {
    failing: usize,
    well: usize,
    failures: u32,
}

impl Record {
    fn new(now: Instant) -> Self {
        let none = Recent::new(now);
        Self { failures: none, successes: none, disturbances: none, last: now, suspension: None }
    }

    fn suspension(&self, now: Instant) -> Option<&Suspension> {
        self.suspension.as_ref().filter(|suspension| suspension.is_in_force(now))
    }

    /// At least half of its answers are failures.
    fn is_failing(&self, now: Instant) -> bool {
        let failures = self.failures.total(now);
        let is_mostly_bad = failures > 0 && failures >= self.successes.total(now);
        is_mostly_bad || self.suspension(now).is_some()
    }

    /// At least half of its requests: a crowd behind one key with a bad member goes on sharing calls.
    fn is_disturbing(&self, now: Instant) -> bool {
        let disturbances = self.disturbances.total(now);
        disturbances > 0 && disturbances >= self.successes.total(now)
    }

    fn is_well(&self, now: Instant) -> bool {
        self.suspension(now).is_none() && self.successes.total(now) > 0
    }

    fn must_be_suspended(&self, now: Instant) -> bool {
        let (failures, successes) = (self.failures.total(now), self.successes.total(now));
        let answers = failures.saturating_add(successes);
        failures >= CALLER_FAILURES && successes <= answers / CALLER_ANSWERS_PER_SUCCESS
    }

    /// What is held against it.
    fn weight(&self, now: Instant) -> u32 {
        match self.suspension(now) {
            Some(_) => SHARE_OF_EVIDENCE,
            None => self.failures.total(now).min(SHARE_OF_EVIDENCE),
        }
    }
}

impl Votes {
    fn add(&mut self, record: &Record, now: Instant) {
        if record.is_failing(now) {
            self.failing += 1;
            self.failures += record.weight(now);
        } else if record.is_well(now) {
            self.well += 1;
        }
    }

    /// Whether at least that many of that many are failing.
    fn are_failing(&self, part: usize, whole: usize) -> bool {
        self.failing > 0 && self.failing * whole >= (self.failing + self.well) * part
    }

    fn suspend_key(&self) -> bool {
        self.failing >= FAILING_MEMBERS && self.failures >= FAILURES && self.are_failing(3, 4)
    }

    fn suspend_version(&self) -> bool {
        self.failing >= FAILING_KEYS && self.failures >= FAILURES && self.are_failing(9, 10)
    }
}

impl Evidence {
    pub(super) fn refusal(&self, now: Instant) -> Option<Refusal> {
        let refuses = self.version.as_ref().filter(|version| version.refuses(now))?;
        Some(Refusal::Version(refuses.remaining(now)))
    }

    pub(super) fn check(&self, caller: CallerId, now: Instant) -> Result<(), Refusal> {
        match self.verdict(caller, now) {
            Verdict::Refuse(refusal) => Err(refusal),
            _ => Ok(()),
        }
    }

    pub(super) fn admit(&mut self, caller: CallerId, now: Instant) -> Result<(), Refusal> {
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

    /// The caller, by this name, as one of several that may probe.
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
                false => Verdict::Refuse(Refusal::Caller(suspension.remaining(now))),
            };
        }
        if record.is_some_and(|record| record.is_well(now)) {
            return Verdict::Accept;
        }
        let in_force = |suspension: &&Suspension| suspension.is_in_force(now);
        if let Some(suspension) = self.keys.get(&caller.key()).filter(in_force) {
            return match suspension.may_probe(self.prober(caller, caller.member(), now), now) {
                true => Verdict::ProbeKey,
                false => Verdict::Refuse(Refusal::Caller(suspension.remaining(now))),
            };
        }
        match self.version.as_ref().filter(in_force) {
            None => Verdict::Accept,
            Some(suspension)
                if suspension.may_probe(self.prober(caller, caller.key(), now), now) =>
            {
                Verdict::ProbeVersion
            }
            Some(suspension) => Verdict::Refuse(Refusal::Version(suspension.remaining(now))),
        }
    }

    pub(super) fn succeeded(&mut self, caller: CallerId, now: Instant) {
        let is_suspended = self.version.is_some() || self.keys.contains_key(&caller.key());
        let record = self.record(caller, now);
        // A probe shows how it is now.
        if is_suspended || record.suspension.is_some() {
            *record = Record::new(now);
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

    pub(super) fn failed(&mut self, caller: CallerId, now: Instant) -> Option<Suspended> {
        let record = self.record(caller, now);
        record.failures.add(now);
        record.disturbances.add(now);
        let mut suspended = None;
        if record.suspension(now).is_none() {
            // One that ended by itself is not gone on with.
            record.suspension = None;
            if record.must_be_suspended(now) {
                record.suspension = Some(Suspension::of_caller(now));
                suspended = Some(Suspended::Caller);
            }
        } else if let Some(suspension) = &mut record.suspension {
            suspension.failed(None);
        }
        self.keys.retain(|_, suspension| suspension.is_in_force(now));
        if let Some(suspension) = self.keys.get_mut(&caller.key()) {
            suspension.failed(Some(caller.member()));
        } else if self.votes_of(caller.key(), now).suspend_key() {
            self.keys.insert(caller.key(), Suspension::of_several(now));
            suspended = Some(Suspended::Key);
        }
        match &mut self.version {
            Some(suspension) if suspension.is_in_force(now) => {
                suspension.failed(Some(caller.key()));
            }
            _ => {
                self.version = None;
                if self.votes(now).suspend_version() {
                    self.version = Some(Suspension::of_several(now));
                    suspended = Some(Suspended::Version);
                }
            }
        }
        suspended
    }

    pub(super) fn isolate(&mut self, caller: CallerId, now: Instant) {
        self.record(caller, now).disturbances.add(now);
    }

    pub(super) fn is_isolated(&self, caller: CallerId, now: Instant) -> bool {
        self.callers.get(&caller).is_some_and(|record| record.is_disturbing(now))
    }

    /// When nothing of it matters any more, if nothing else happens.
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

    /// A vote for each API key.
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
            } else if of_key.well > 0 {
                votes.well += 1;
            }
        }
        votes
    }

    fn record(&mut self, caller: CallerId, now: Instant) -> &mut Record {
        if self.callers.len() >= MAX_CALLERS && !self.callers.contains_key(&caller) {
            self.evict(now);
        }
        let record = self.callers.entry(caller).or_insert_with(|| Record::new(now));
        record.last = now;
        record
    }

    /// Forget the caller that has been heard of least recently: rather one that was not answered, so
    /// that many names do not displace those for whom the version works.
    fn evict(&mut self, now: Instant) {
        let rank = |record: &Record| (record.is_well(now), record.last);
        let first = self.callers.iter().min_by_key(|(_, record)| rank(record));
        if let Some(caller) = first.map(|(caller, _)| *caller) {
            self.callers.remove(&caller);
        }
    }
}
