//! The rules by which operations change a state.

use std::collections::BTreeMap;

use semver::Version;

use super::operation::{Operation, Promotion, RolloutError, Status, Transition, VersionUse};
use super::state::{Deployed, ModelState, Routing, ShadowShare, Stage, WHOLE};
use guesthouse_artifact::Digest;

/// The most previously promoted versions that are remembered for rollbacks.
const MAX_PROMOTED: usize = 16;

/// The most versions that stay deployed without being loaded.
const MAX_RETIRED: usize = 32;

/// The most undeployed artifacts that are remembered.
const MAX_WITHDRAWN: usize = 256;

/// What the rules depend on besides the state.
pub struct Rules<'a> {
    /// Whether a version is loaded.
    pub is_ready: &'a dyn Fn(&Version) -> bool,
    /// How many replaced versions stay loaded.
    pub max_parked: usize,
    /// The revision that the change will get.
    pub revision: u64,
}

/// The state after an operation.
///
/// # Errors
/// [`RolloutError`].
pub fn apply(
    state: &ModelState,
    operation: &Operation,
    rules: &Rules<'_>,
) -> Result<Transition, RolloutError> {
    let mut next = state.clone();
    if let Some(version) = operation.version(state).filter(|_| operation.needs_ready()) {
        if !state.versions.contains_key(&version) {
            return Err(RolloutError::UnknownVersion(version));
        }
        if !(rules.is_ready)(&version) {
            return Err(RolloutError::NotReady(version));
        }
    }
    let routing = &mut next.routing;
    let status = match operation {
        Operation::Deploy { version, digest, promotion } => {
            deploy(&mut next, version, *digest)?;
            match promotion {
                Promotion::Yes => promote(&mut next.routing, version, false)?,
                Promotion::IfFirst => {
                    adopt(&mut next.routing, std::slice::from_ref(version));
                    Status::Deployed
                }
                Promotion::No => Status::Deployed,
            }
        }
        Operation::Promote { version, supersede } => {
            // A configured split can name a version that was never deployed. It does not forbid a downgrade.
            routing.stable.take_if(|stable| !state.versions.contains_key(stable));
            promote(routing, version, *supersede)?
        }
        Operation::Canary { version, weight, supersede } => {
            canary(routing, version, *weight, *supersede)?
        }
        Operation::Shadow(shadow) => set_shadow(routing, shadow.clone())?,
        Operation::Rollback { to } => roll_back(routing, to.as_ref())?,
        Operation::Undeploy { version } => undeploy(&mut next, version)?,
        Operation::Adopt { ready } => {
            // Some of them may have been undeployed meanwhile.
            let is_there = |version: &&Version| {
                state.versions.contains_key(*version) && (rules.is_ready)(version)
            };
            adopt(routing, &ready.iter().filter(is_there).cloned().collect::<Vec<_>>())
        }
        Operation::Configure { split } => configure(&mut next, split.clone()),
    };
    if next != *state {
        next.revision = rules.revision;
        set_stages(&mut next, &state.routing, rules);
    }
    Ok(Transition { state: next, status })
}

/// What has to be done to make a change. It is decided under the lock under which the state changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Apply this transition: every version that it uses is loaded.
    Apply(Transition),
    /// Load this version first, and decide again, because the state may have changed by then.
    Load(Version),
}

/// Apply an operation, unless it would use a version that is not loaded. Versions that were in use before
/// are not considered: if they are missing, the change does not make it worse.
///
/// # Errors
/// [`RolloutError`], but never [`RolloutError::NotReady`].
pub fn decide(
    state: &ModelState,
    operation: &Operation,
    rules: &Rules<'_>,
) -> Result<Decision, RolloutError> {
    let transition = match apply(state, operation, rules) {
        Err(RolloutError::NotReady(version)) => {
            // If the operation is refused anyway, nothing has to be loaded.
            apply(state, operation, &Rules { is_ready: &|_| true, ..*rules })?;
            return Ok(Decision::Load(version));
        }
        transition => transition?,
    };
    let was_loaded = |version: &Version| {
        let before = state.versions.get(version);
        before.is_some_and(|deployed| !matches!(deployed.stage, Stage::Retired(_)))
    };
    let is_missing = |version: &Version| {
        let is_new = !was_loaded(version)
            || transition.state.routing.uses(version) && !state.routing.uses(version);
        is_new && !(rules.is_ready)(version)
    };
    let missing = transition.state.loaded().map(|(version, _)| version).find(|it| is_missing(it));
    Ok(match missing.cloned() {
        Some(version) => Decision::Load(version),
        None => Decision::Apply(transition),
    })
}

fn deploy(state: &mut ModelState, version: &Version, digest: Digest) -> Result<(), RolloutError> {
    match state.same_precedence(version) {
        Some((same, deployed)) if same != version || deployed.digest != digest => {
            return Err(RolloutError::OtherContent(same.clone(), deployed.digest));
        }
        Some((_, Deployed { stage: Stage::Deployed | Stage::Parked(_), .. })) => {}
        Some(_) | None => {
            let stage = Stage::Deployed;
            state.versions.insert(version.clone(), Deployed { digest, stage });
        }
    }
    state.withdrawn.retain(|withdrawn| *withdrawn != digest);
    Ok(())
}

fn promote(
    routing: &mut Routing,
    version: &Version,
    supersede: bool,
) -> Result<Status, RolloutError> {
    check_rollout(routing, version, supersede)?;
    if let Some(stable) = routing.stable.clone().filter(|stable| stable > version) {
        return Err(RolloutError::Downgrade(version.clone(), stable));
    }
    routing.candidates.clear();
    make_stable(routing, version.clone());
    Ok(Status::Promoted)
}

/// Only one rollout at a time, unless one says that it ends the other.
fn check_rollout(
    routing: &Routing,
    version: &Version,
    supersede: bool,
) -> Result<(), RolloutError> {
    let other = routing.candidates.keys().rev().find(|candidate| *candidate != version);
    match other {
        Some(other) if !supersede => Err(RolloutError::RolloutActive(other.clone())),
        Some(_) | None => Ok(()),
    }
}

/// Make a version the stable one, and the previous one the target of a rollback.
fn make_stable(routing: &mut Routing, version: Version) {
    routing.promoted.retain(|before| *before != version);
    // The stable version would be compared with itself.
    routing.shadow.take_if(|shadow| shadow.version == version);
    if let Some(stable) =
        routing.stable.replace(version.clone()).filter(|stable| *stable != version)
    {
        routing.promoted.push(stable);
    }
    let excess = routing.promoted.len().saturating_sub(MAX_PROMOTED);
    routing.promoted.drain(..excess);
}

fn canary(
    routing: &mut Routing,
    version: &Version,
    weight: u32,
    supersede: bool,
) -> Result<Status, RolloutError> {
    match &routing.stable {
        None => return Err(RolloutError::NothingPromoted),
        Some(stable) if stable == version => return Err(RolloutError::IsStable(version.clone())),
        Some(_) => {}
    }
    let mut status = Status::Canary;
    // A configuration can name several candidates, and each of them can get another weight.
    if !routing.candidates.contains_key(version) {
        check_rollout(routing, version, supersede)?;
        if routing.is_split() {
            status = Status::Superseded;
        }
        routing.candidates.clear();
    }
    routing.candidates.insert(version.clone(), weight);
    let given: u64 = routing.candidates.values().map(|weight| u64::from(*weight)).sum();
    if given > u64::from(WHOLE) { Err(RolloutError::OverWhole(given)) } else { Ok(status) }
}

fn set_shadow(routing: &mut Routing, shadow: Option<ShadowShare>) -> Result<Status, RolloutError> {
    if let Some(shadow) = &shadow {
        if shadow.share > WHOLE {
            return Err(RolloutError::OverWhole(shadow.share.into()));
        }
        if routing.stable.as_ref() == Some(&shadow.version) {
            return Err(RolloutError::IsStable(shadow.version.clone()));
        }
    }
    routing.shadow = shadow;
    Ok(Status::Shadow)
}

fn roll_back(routing: &mut Routing, to: Option<&Version>) -> Result<Status, RolloutError> {
    let stable = routing.stable.clone().ok_or(RolloutError::NothingPromoted)?;
    let target = match to {
        Some(to) => to.clone(),
        None if routing.is_split() => stable.clone(),
        None => {
            let before = routing.promoted.last().cloned();
            before.ok_or_else(|| RolloutError::NothingBefore(stable.clone()))?
        }
    };
    routing.candidates.clear();
    if target == stable {
        return Ok(Status::Aborted);
    }
    let index = routing.promoted.iter().rposition(|before| *before == target);
    routing.promoted.truncate(index.ok_or_else(|| RolloutError::NeverPromoted(target.clone()))?);
    routing.shadow.take_if(|shadow| shadow.version == target);
    routing.stable = Some(target);
    Ok(Status::RolledBack)
}

fn undeploy(state: &mut ModelState, version: &Version) -> Result<Status, RolloutError> {
    let digest = match state.versions.get(version) {
        Some(deployed) => deployed.digest,
        None => return Err(RolloutError::UnknownVersion(version.clone())),
    };
    // The last version of a model may be removed while it is in use: no traffic moves to another version.
    if state.versions.len() == 1 {
        state.routing = Routing::default();
    }
    if let Some(used) = version_use(&state.routing, version) {
        return Err(RolloutError::InUse(version.clone(), used));
    }
    state.routing.promoted.retain(|before| before != version);
    withdraw(state, version, digest);
    Ok(Status::Undeployed)
}

fn version_use(routing: &Routing, version: &Version) -> Option<VersionUse> {
    if routing.stable.as_ref() == Some(version) {
        Some(VersionUse::Stable)
    } else if routing.candidates.contains_key(version) {
        Some(VersionUse::Candidate)
    } else if routing.shadow.as_ref().is_some_and(|shadow| shadow.version == *version) {
        Some(VersionUse::Shadow)
    } else if routing.promoted.last() == Some(version) {
        Some(VersionUse::RollbackTarget)
    } else {
        None
    }
}

/// Remove a version and remember its artifact, because its file may still be in the repository folder.
fn withdraw(state: &mut ModelState, version: &Version, digest: Digest) {
    state.versions.remove(version);
    state.withdrawn.push(digest);
    let excess = state.withdrawn.len().saturating_sub(MAX_WITHDRAWN);
    state.withdrawn.drain(..excess);
}

fn adopt(routing: &mut Routing, ready: &[Version]) -> Status {
    if routing.stable.is_none() {
        routing.stable = ready.iter().filter(|version| version.pre.is_empty()).max().cloned();
    }
    Status::Promoted
}

fn configure(state: &mut ModelState, split: Option<BTreeMap<Version, u32>>) -> Status {
    if state.configured != split
        && let Some(mut candidates) = split.clone()
    {
        // If several versions have the largest weight, the lowest of them.
        let heaviest = candidates.iter().rev().max_by_key(|(_, weight)| **weight);
        if let Some(heaviest) = heaviest.map(|(version, _)| version.clone()) {
            candidates.remove(&heaviest);
            make_stable(&mut state.routing, heaviest);
            let versions = &state.versions;
            state.routing.promoted.retain(|before| versions.contains_key(before));
            state.routing.candidates = candidates;
        }
    }
    state.configured = split;
    Status::Configured
}

/// Park the versions that are not in use any more. Beyond the limits, retire the oldest parked versions, and
/// remove the oldest retired ones.
fn set_stages(state: &mut ModelState, before: &Routing, rules: &Rules<'_>) {
    let ModelState { versions, routing, .. } = state;
    for (version, deployed) in versions.iter_mut() {
        if routing.uses(version) {
            deployed.stage = Stage::Deployed;
        } else if before.uses(version) && deployed.stage == Stage::Deployed {
            deployed.stage = Stage::Parked(rules.revision);
        }
    }
    let target = routing.promoted.last().cloned();
    let mut parked: Vec<_> = versions
        .iter_mut()
        .filter_map(|(version, deployed)| match deployed.stage {
            Stage::Parked(since) => Some((Some(version) == target.as_ref(), since, deployed)),
            Stage::Deployed | Stage::Retired(_) => None,
        })
        .collect();
    // The target of a rollback is kept first, then the versions that were replaced last.
    parked.sort_by_key(|(is_target, since, _)| std::cmp::Reverse((*is_target, *since)));
    for (_, since, deployed) in parked.into_iter().skip(rules.max_parked) {
        deployed.stage = Stage::Retired(since);
    }
    let mut retired: Vec<_> = versions
        .iter()
        .filter_map(|(version, deployed)| match deployed.stage {
            Stage::Retired(since) if target.as_ref() != Some(version) => {
                Some((since, version.clone(), deployed.digest))
            }
            Stage::Retired(_) | Stage::Deployed | Stage::Parked(_) => None,
        })
        .collect();
    retired.sort();
    let excess = retired.len().saturating_sub(MAX_RETIRED);
    for (_, version, digest) in retired.drain(..excess) {
        state.routing.promoted.retain(|before| *before != version);
        withdraw(state, &version, digest);
    }
}
