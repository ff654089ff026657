//! Which version answers a request: a pure function of the snapshot, the selector and a draw.
//!
//! No I/O, no locks and no randomness of its own. The order of precedence is: an exact version, a channel,
//! a range, the split. A draw is a number below a million: random, or the [`bucket`] of the caller's sticky
//! key, so that a caller stays with a candidate while its weight grows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use semver::Version;
use sha2::{Digest as _, Sha256};

use crate::registry::{ModelVersions, Snapshot, VersionState};
use crate::rollout::{Routing, WHOLE};
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::{BreakerRefusal, CallerId, ServableVersion};

/// The draw of a sticky key: the same for the same model and key on every host. It is the first eight bytes
/// of SHA-256 over the model's name, a zero byte and the key, as a big-endian fraction of a million.
pub fn bucket(model: &ModelName, key: &[u8]) -> u32 {
    let hash = Sha256::new().chain_update(model.as_str()).chain_update([0]).chain_update(key);
    let hash = hash.finalize();
    let (first, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
    let scaled = (u128::from(u64::from_be_bytes(*first)) * u128::from(WHOLE)) >> u64::BITS;
    u32::try_from(scaled).expect("a fraction of a million is less than a million")
}

/// Why the router chose a version. It is also the value of the header `X-Route-Reason`.
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
    /// The value in headers, logs and metrics.
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

/// The draws for one request: two numbers below [`WHOLE`].
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Decides between the versions of a split.
    pub split: u32,
    /// Decides whether the request is compared with the shadow.
    pub shadow: u32,
    /// The caller; none if there is no request, but a question where one would go.
    pub caller: Option<CallerId>,
}

/// The version that answers a request, and why it was chosen.
#[derive(Clone)]
pub struct Route {
    /// The version.
    pub version: Arc<ServableVersion>,
    /// Why it was chosen.
    pub reason: Reason,
    /// The role of the version in its model's rollout.
    pub role: Role,
    /// The stable version of the model, if it is another one and loaded.
    pub stable: Option<Arc<ServableVersion>>,
    /// Whether the draw decided: another draw might have chosen another version.
    pub is_drawn: bool,
    /// The candidate that the answer is compared with, after it was sent.
    pub shadow: Option<Arc<ServableVersion>>,
}

/// The role of a version in its model's rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The promoted version; any version while none is promoted.
    Stable,
    /// A canary.
    Candidate,
    /// Neither: it answers requests that name it.
    Other,
}

impl Role {
    /// The value in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Candidate => "candidate",
            Self::Other => "other",
        }
    }

    /// The role of a version under this routing.
    pub fn new(version: &Version, routing: &Routing) -> Self {
        if routing.stable.as_ref().is_none_or(|stable| stable == version) {
            Self::Stable
        } else if routing.candidates.contains_key(version) {
            Self::Candidate
        } else {
            Self::Other
        }
    }
}

/// Why no version answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// There is no such model.
    #[error("there is no such model")]
    UnknownModel,
    /// The model has no such version.
    #[error("the model has no version that matches")]
    NoSuchVersion,
    /// The channel has no version at the moment.
    #[error("there is no version in this channel")]
    EmptyChannel,
    /// The version was retired and is not loaded.
    #[error("the version is retired")]
    Retired,
    /// The version, or the whole server, is not ready.
    #[error("the version is not ready")]
    NotReady,
    /// The version keeps failing and is suspended for this time.
    #[error("the version is suspended")]
    Suspended(Duration),
    /// The version keeps failing on this caller's requests and is suspended for the caller for this time.
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

/// Choose the version that answers a request for `model`. Versions that are suspended at `now` are skipped
/// if there is another choice.
///
/// # Errors
/// [`RouteError`]. While the server is starting, a version that is not there may yet be loaded, so the error
/// is [`RouteError::NotReady`] instead of one that says that it is unknown.
pub fn route(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
    draw: Draw,
    now: Instant,
) -> Result<Route, RouteError> {
    let while_starting = |error| {
        let may_come = matches!(error, RouteError::UnknownModel | RouteError::NoSuchVersion);
        if snapshot.loading && may_come { RouteError::NotReady } else { error }
    };
    let versions = snapshot.models.get(model).ok_or(while_starting(RouteError::UnknownModel))?;
    let (version, reason) = choose(versions, selector, draw, now).map_err(while_starting)?;
    let is_drawn = versions.routing.is_split() && applies_split(versions, selector);
    let shadow = shadow(versions, &version, draw.shadow);
    let role = Role::new(&version.id().version, &versions.routing);
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
    let (split, now) = (draw.split, (draw.caller, now));
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
            let split = by_split(model, split).filter(|version| range.matches(version));
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
            let states = by_split(model, split).filter_map(|version| versions.get(version));
            or_not_ready(first_available(states, now)).map(with(reason))
        }
        Selector::Default => {
            let releases = versions.iter().rev().filter(|(version, _)| selector.matches(version));
            let states = releases.map(|(_, state)| state).filter(is_loaded);
            first_available(states, now).map(with(Reason::Default))
        }
    }
}

/// A version that routing names but that is not there is not ready: it was there before, or will be.
fn or_not_ready<T>(found: Result<T, RouteError>) -> Result<T, RouteError> {
    found.map_err(|error| match error {
        RouteError::NoSuchVersion | RouteError::Retired => RouteError::NotReady,
        other => other,
    })
}

/// Whether the operator's split decides which version answers. It does for requests without a version, and
/// for ranges that the stable version matches.
fn applies_split(model: &ModelVersions, selector: &Selector) -> bool {
    match selector {
        Selector::Default => true,
        Selector::Range(range) => {
            model.routing.stable.as_ref().is_some_and(|stable| range.matches(stable))
        }
        Selector::Exact(_) | Selector::Channel(_) => false,
    }
}

/// The version that this draw chooses, then the stable version, then the others with a share, the largest
/// first: if a candidate cannot answer, the request goes to the next one.
fn by_split(model: &ModelVersions, draw: u32) -> impl Iterator<Item = &Version> {
    let mut shares: Vec<_> = model.routing.shares().filter(|(_, share)| *share > 0).collect();
    shares.sort_by_key(|(_, share)| std::cmp::Reverse(*share));
    let others = shares.into_iter().map(|(version, _)| version);
    model.routing.version_at(draw).into_iter().chain(&model.routing.stable).chain(others)
}

/// Ranges and the default only consider versions that are loaded, or will be.
fn is_loaded(state: &&VersionState) -> bool {
    !matches!(state, VersionState::Retired | VersionState::Draining)
}

/// The first version that can answer now, or the reason why the first of them cannot.
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

/// Why the breaker of the version refuses this caller, or any caller if none is given.
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

/// The version that the answer is compared with, if any. No version is compared with itself.
fn shadow(
    model: &ModelVersions,
    answering: &Arc<ServableVersion>,
    draw: u32,
) -> Option<Arc<ServableVersion>> {
    let shadow = model.routing.shadow.as_ref().filter(|shadow| draw < shadow.share)?;
    let version = model.versions.get(&shadow.version)?.servable()?;
    (version.key() != answering.key()).then(|| Arc::clone(version))
}

/// Which versions answer requests with this selector, why, and the share of each, the largest first.
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
        |split| route(snapshot, model, selector, Draw { split, shadow: WHOLE, caller: None }, now);
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
    fn a_sticky_key_has_the_same_bucket_everywhere() {
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
