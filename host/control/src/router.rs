//! Which version answers a request: a pure function of the snapshot, the selector and a draw.
//!
//! No I/O, no locks, no randomness of its own. The order is: an exact version, a channel, a range, the
//! split. A draw is a number below a million: random, or the [`bucket`] of a caller's key, so that a
//! caller stays with a version while its weight grows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use semver::Version;
use sha2::{Digest as _, Sha256};

use crate::registry::{ModelVersions, Snapshot, VersionState};
use crate::rollout::{Routing, WHOLE};
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::{BreakerRefusal, CallerId, ServableVersion};

/// The draw of a caller: the same for the same model and key, on every host and for ever. SHA-256
/// of the model's name, a zero byte and the key; the first eight bytes are a fraction, big-endian.
pub fn bucket(model: &ModelName, key: &[u8]) -> u32 {
    let hash = Sha256::new().chain_update(model.as_str()).chain_update([0]).chain_update(key);
    let hash = hash.finalize();
    let (first, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
    let scaled = (u128::from(u64::from_be_bytes(*first)) * u128::from(WHOLE)) >> u64::BITS;
    u32::try_from(scaled).expect("a fraction of a million is less than a million")
}

/// Why a version was chosen; also the value of the header `X-Route-Reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The caller named the version.
    Pin,
    /// The caller named a channel.
    Channel,
    /// The caller gave a range.
    Range,
    /// The model's traffic is split.
    Split,
    /// The model's traffic is not split.
    Default,
}

impl Reason {
    /// The word for headers, logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Channel => "channel",
            Self::Range => "range",
            Self::Split => "split",
            Self::Default => "default",
        }
    }
}

/// Where a request falls: two numbers below [`WHOLE`].
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Decides a split.
    pub place: u32,
    /// Decides whether a shadow answers as well.
    pub shadow: u32,
    /// Who asks; none, if it is only asked where a request would go.
    pub caller: Option<CallerId>,
}

/// The version that answers, and why.
#[derive(Clone)]
pub struct Route {
    /// The version.
    pub version: Arc<ServableVersion>,
    /// Why.
    pub reason: Reason,
    /// What the version is to its model.
    pub role: Role,
    /// The model's stable version, if it is another one and loaded.
    pub stable: Option<Arc<ServableVersion>>,
    /// Whether another draw might have sent the request elsewhere.
    pub is_drawn: bool,
    /// The version that is asked as well, once the answer is on its way, to compare the two.
    pub shadow: Option<Arc<ServableVersion>>,
}

/// What a version is to its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The promoted one, or any while none is.
    Stable,
    /// On trial.
    Candidate,
    /// There for who names it.
    Other,
}

impl Role {
    /// The word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Candidate => "candidate",
            Self::Other => "other",
        }
    }

    /// Of a version, by what was decided.
    pub fn of(version: &Version, routing: &Routing) -> Self {
        if routing.stable.as_ref().is_none_or(|stable| stable == version) {
            Self::Stable
        } else if routing.candidates.contains_key(version) {
            Self::Candidate
        } else {
            Self::Other
        }
    }
}

/// No version answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// There is no such model.
    #[error("there is no such model")]
    UnknownModel,
    /// The model has no such version.
    #[error("the model has no version that matches")]
    NoSuchVersion,
    /// The channel stands for nothing at the moment.
    #[error("there is no version in this channel")]
    EmptyChannel,
    /// The version was replaced long ago and is not loaded.
    #[error("the version is retired")]
    Retired,
    /// The version, or the whole server, is not ready.
    #[error("the version is not ready")]
    NotReady,
    /// The version keeps breaking down and is not asked for a while.
    #[error("the version is suspended")]
    Suspended(Duration),
    /// It keeps breaking down on this caller's requests, and takes no more of them for a while.
    #[error("the version is suspended for this caller")]
    CallerSuspended(Duration),
}

impl From<BreakerRefusal> for RouteError {
    fn from(refusal: BreakerRefusal) -> Self {
        match refusal {
            BreakerRefusal::Version(time) => Self::Suspended(time),
            BreakerRefusal::Caller(time) => Self::CallerSuspended(time),
        }
    }
}

/// The version that answers a request for `model`. Versions that are suspended at `now` are passed
/// over where there is another choice.
///
/// # Errors
/// [`RouteError`]. While the server is still loading, what is not there may yet come, so it is not
/// ready rather than unknown.
pub fn route(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
    draw: Draw,
    now: Instant,
) -> Result<Route, RouteError> {
    let absent = |error| {
        let may_come = matches!(error, RouteError::UnknownModel | RouteError::NoSuchVersion);
        if snapshot.loading && may_come { RouteError::NotReady } else { error }
    };
    let versions = snapshot.models.get(model).ok_or(absent(RouteError::UnknownModel))?;
    let (version, reason) = choose(versions, selector, draw, now).map_err(absent)?;
    let is_drawn = versions.routing.is_split() && applies_split(versions, selector);
    let shadow = shadow(versions, &version, draw.shadow);
    let role = Role::of(&version.id().version, &versions.routing);
    let stable = versions.routing.stable.as_ref().and_then(|stable| versions.versions.get(stable));
    let stable = stable.and_then(VersionState::servable).filter(|it| it.key() != version.key());
    let stable = stable.map(Arc::clone);
    Ok(Route { version, reason, role, stable, is_drawn, shadow })
}

fn choose(
    model: &ModelVersions,
    selector: &Selector,
    draw: Draw,
    now: Instant,
) -> Result<(Arc<ServableVersion>, Reason), RouteError> {
    let (place, now) = (draw.place, (draw.caller, now));
    let ModelVersions { versions, routing } = model;
    let with = |reason| move |version| (version, reason);
    match selector {
        Selector::Exact(_) => {
            let matching = versions.iter().rev().filter(|(version, _)| selector.matches(version));
            first_available(matching.map(|(_, state)| state), now).map(with(Reason::Pin))
        }
        Selector::Channel(channel) => {
            let version = routing.channel(*channel).ok_or(RouteError::EmptyChannel)?;
            first_available(versions.get(version), now).map(with(Reason::Channel))
        }
        Selector::Range(range) if applies_split(model, selector) => {
            let split = by_split(model, place).filter(|version| range.matches(version));
            let states = split.filter_map(|version| versions.get(version));
            or_not_ready(first_available(states, now)).map(with(Reason::Range))
        }
        Selector::Range(_) => {
            let matching = versions.iter().rev().filter(|(version, _)| selector.matches(version));
            let states = matching.map(|(_, state)| state).filter(is_loaded);
            first_available(states, now).map(with(Reason::Range))
        }
        Selector::Default if routing.stable.is_some() => {
            let reason = if routing.is_split() { Reason::Split } else { Reason::Default };
            let states = by_split(model, place).filter_map(|version| versions.get(version));
            or_not_ready(first_available(states, now)).map(with(reason))
        }
        Selector::Default => {
            let releases = versions.iter().rev().filter(|(version, _)| selector.matches(version));
            let states = releases.map(|(_, state)| state).filter(is_loaded);
            first_available(states, now).map(with(Reason::Default))
        }
    }
}

/// What is routed to has been there, or may yet come.
fn or_not_ready<T>(found: Result<T, RouteError>) -> Result<T, RouteError> {
    found.map_err(|error| match error {
        RouteError::NoSuchVersion | RouteError::Retired => RouteError::NotReady,
        other => other,
    })
}

/// Whether it is the operator who decides which version answers: whoever asks for none, or can live
/// with the stable one, leaves it to that.
fn applies_split(model: &ModelVersions, selector: &Selector) -> bool {
    match selector {
        Selector::Default => true,
        Selector::Range(range) => {
            model.routing.stable.as_ref().is_some_and(|stable| range.matches(stable))
        }
        Selector::Exact(_) | Selector::Channel(_) => false,
    }
}

/// The version that has the place, then the others that have a share, the largest first: a candidate
/// that is broken costs no request. If the place is a candidate's that does not come into question, it
/// is the stable version's.
fn by_split(model: &ModelVersions, place: u32) -> impl Iterator<Item = &Version> {
    let mut shares: Vec<_> = model.routing.shares().filter(|(_, share)| *share > 0).collect();
    shares.sort_by_key(|(_, share)| std::cmp::Reverse(*share));
    let others = shares.into_iter().map(|(version, _)| version);
    model.routing.at(place).into_iter().chain(&model.routing.stable).chain(others)
}

/// Ranges and the default go by what there is.
fn is_loaded(state: &&VersionState) -> bool {
    !matches!(state, VersionState::Retired | VersionState::Draining)
}

/// The first version that can serve now, or why none of them can.
fn first_available<'a>(
    states: impl IntoIterator<Item = &'a VersionState>,
    (caller, now): (Option<CallerId>, Instant),
) -> Result<Arc<ServableVersion>, RouteError> {
    let mut why = None;
    for state in states {
        match state {
            VersionState::Ready(version) | VersionState::Parked(version) => {
                match refusal(version, caller, now) {
                    None => return Ok(Arc::clone(version)),
                    Some(refusal) => {
                        why = Some((RouteError::from(refusal), Some((version, refusal))))
                    }
                }
            }
            VersionState::Loading | VersionState::Failed(_) => {
                why = why.or(Some((RouteError::NotReady, None)));
            }
            VersionState::Retired | VersionState::Draining => {
                why = why.or(Some((RouteError::Retired, None)));
            }
        }
    }
    let (why, refused) = why.unwrap_or((RouteError::NoSuchVersion, None));
    if let (Some((version, refusal)), Some(_)) = (refused, caller) {
        version.metrics().count_refusal(refusal);
    }
    Err(why)
}

/// Why the version does not take a request of this caller, or of one that is not known.
fn refusal(
    version: &ServableVersion,
    caller: Option<CallerId>,
    now: Instant,
) -> Option<BreakerRefusal> {
    match caller {
        Some(caller) => version.breaker().check(caller, now).err(),
        None => version.breaker().refusal(now),
    }
}

/// The shadow of an answer: no version shadows itself.
fn shadow(
    model: &ModelVersions,
    answering: &Arc<ServableVersion>,
    draw: u32,
) -> Option<Arc<ServableVersion>> {
    let shadow = model.routing.shadow.as_ref().filter(|shadow| draw < shadow.share)?;
    let version = model.versions.get(&shadow.version)?.servable()?;
    (version.key() != answering.key()).then(|| Arc::clone(version))
}

/// Which versions answer requests with this selector, why, and which share of them each gets, the
/// largest first.
///
/// # Errors
/// [`RouteError`], as [`route`].
pub fn explain(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
    now: Instant,
) -> Result<Vec<(Arc<ServableVersion>, Reason, u32)>, RouteError> {
    let at =
        |place| route(snapshot, model, selector, Draw { place, shadow: WHOLE, caller: None }, now);
    let mut found = BTreeMap::<u64, (Arc<ServableVersion>, Reason, u32)>::new();
    let mut from = 0;
    let routing = snapshot.models.get(model).map(|versions| &versions.routing);
    let mut shares: Vec<_> =
        routing.iter().flat_map(|routing| routing.shares()).map(|(_, share)| share).collect();
    if shares.is_empty() {
        shares.push(WHOLE);
    }
    for share in shares.into_iter().filter(|share| *share > 0) {
        let route = at(from)?;
        let entry = found.entry(route.version.key());
        entry.or_insert((route.version, route.reason, 0)).2 += share;
        from += share;
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_by_key(|(version, _, share)| std::cmp::Reverse((*share, version.id().clone())));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sticky_key_hashes_to_the_published_place() {
        // Computed with another implementation of SHA-256; published in the README.
        for (model, key, place) in [
            ("toxicity", "", 920_811),
            ("toxicity", "alice", 636_166),
            ("toxicity", "bob", 422_424),
            ("text-direction", "alice", 59_538),
            ("toxicity", "user-4711", 440_304),
            ("toxicity", "Ünïcödé", 390_759),
        ] {
            let model: ModelName = model.parse().unwrap();
            assert_eq!(bucket(&model, key.as_bytes()), place, "{model} {key:?}");
        }
    }
}
