//! The state of a model after a change: the rules, stated independently of the server.
//!
//! Only changes whose outcome is unambiguous are generated; the boundary tests cover the others.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use semver::Version;
use serde_json::Value;

use crate::bench::admin::{Mutation, Reply, WHOLE, parse_version};

/// The maximum number of promotions that can be rolled back, so that the number that a server
/// remembers does not matter.
const MOST_PROMOTED: usize = 4;

/// The shares of candidates and shadows in parts per million.
const SHARES: [u32; 3] = [0, 100_000, WHOLE / 2];

/// The state of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) stable: Option<Version>,
    /// The candidates with their weights.
    pub(super) candidates: BTreeMap<Version, u32>,
    /// The shadow with its share.
    pub(super) shadow: Option<(Version, u32)>,
    /// The previous stable versions, newest last.
    pub(super) promoted: Vec<Version>,
    /// The deployed versions with their digests in hexadecimal.
    pub(super) versions: BTreeMap<Version, String>,
}

/// The verdict about a change after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The state is consistent with the response.
    Kept,
    /// The change was acknowledged and is not there.
    Lost,
    /// The state is neither that before nor that after the change, or a rejected change was made.
    Partial,
}

impl State {
    /// Parses the admin API's description of a model; none is the state of an unknown model.
    pub(super) fn from_model(model: Option<&Value>) -> Result<Self> {
        let Some(model) = model else {
            return Ok(Self::default());
        };
        Self::parse(model).with_context(|| format!("cannot parse the state: {model}"))
    }

    fn parse(model: &Value) -> Result<Self> {
        let version = |value: &Value| parse_version(value.as_str().context("no version")?);
        let number = |value: &Value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.context("no number")
        };
        let (stable, shadow) = (&model["stable"], &model["shadow"]);
        let mut state = Self::default();
        if !stable.is_null() {
            state.stable = Some(version(stable)?);
        }
        if !shadow.is_null() {
            state.shadow = Some((version(&shadow["version"])?, number(&shadow["share"])?));
        }
        for (candidate, weight) in model["candidates"].as_object().context("no candidates")? {
            state.candidates.insert(parse_version(candidate)?, number(weight)?);
        }
        for promoted in model["promoted"].as_array().context("no list of promoted versions")? {
            state.promoted.push(version(promoted)?);
        }
        for entry in model["versions"].as_array().context("no versions")? {
            if entry["digest"].is_null() {
                // It is being removed or failed to load.
                continue;
            }
            let digest = entry["digest"].as_str().context("no digest")?;
            let digest = digest.strip_prefix("sha256:").context("no SHA-256")?;
            state.versions.insert(version(&entry["version"])?, digest.to_owned());
        }
        Ok(state)
    }

    /// All changes that are possible with these deployments.
    pub(super) fn allowed(&self, pool: &[Mutation]) -> Vec<Mutation> {
        let mut allowed = Vec::new();
        for deploy in pool {
            if let Mutation::Deploy { version, .. } = deploy {
                if self.versions.contains_key(version) {
                    allowed.extend(self.allowed_of(version));
                } else {
                    allowed.push(deploy.clone());
                }
            }
        }
        if !self.candidates.is_empty() || !self.promoted.is_empty() {
            allowed.push(Mutation::Rollback(None));
        }
        if self.shadow.is_some() {
            allowed.push(Mutation::Shadow(None));
        }
        allowed
    }

    /// The changes of a deployed version.
    fn allowed_of(&self, version: &Version) -> Vec<Mutation> {
        let mut allowed = Vec::new();
        let is_shadow = self.shadow.as_ref().is_some_and(|(shadow, _)| shadow == version);
        let is_candidate = self.candidates.contains_key(version);
        let is_up = self.stable.as_ref().is_none_or(|stable| version > stable);
        let is_free = self.candidates.is_empty() || is_candidate;
        if is_up && is_free && !is_shadow {
            if self.promoted.len() < MOST_PROMOTED {
                allowed.push(Mutation::Promote(version.clone()));
            }
            let weights =
                SHARES.iter().filter(|weight| self.candidates.get(version) != Some(weight));
            allowed.extend(weights.map(|weight| Mutation::Canary(version.clone(), *weight)));
        }
        if is_up && !is_candidate && !is_shadow {
            allowed.push(Mutation::Shadow(Some((version.clone(), WHOLE))));
        }
        let is_used = is_shadow || is_candidate || self.promoted.contains(version);
        if !is_used && self.stable.as_ref() != Some(version) {
            allowed.push(Mutation::Undeploy(version.clone()));
        }
        allowed
    }

    /// The state after an allowed change.
    pub(super) fn after(&self, mutation: &Mutation) -> Self {
        let mut state = self.clone();
        match mutation {
            Mutation::Deploy { version, digest, .. } => {
                state.versions.insert(version.clone(), digest.clone());
                state.stable.get_or_insert_with(|| version.clone());
            }
            Mutation::Promote(version) => {
                state.promoted.extend(state.stable.replace(version.clone()));
                state.candidates.clear();
            }
            Mutation::Canary(version, weight) => {
                state.candidates.insert(version.clone(), *weight);
            }
            Mutation::Shadow(shadow) => state.shadow.clone_from(shadow),
            Mutation::Rollback(None) if !state.candidates.is_empty() => state.candidates.clear(),
            Mutation::Rollback(None) => state.stable = state.promoted.pop(),
            Mutation::Rollback(Some(to)) => {
                state.candidates.clear();
                while state.stable.as_ref() != Some(to) && !state.promoted.is_empty() {
                    state.stable = state.promoted.pop();
                }
            }
            Mutation::Undeploy(version) => {
                state.versions.remove(version);
            }
        }
        state
    }

    /// Judges a change of this state by the response and the resulting state.
    pub(super) fn judge(&self, mutation: &Mutation, reply: &Reply, is: &Self) -> Verdict {
        let after = self.after(mutation);
        match reply {
            Reply::Acknowledged(_) if *is == after => Verdict::Kept,
            Reply::Acknowledged(_) if is == self => Verdict::Lost,
            Reply::Rejected(_) if is == self => Verdict::Kept,
            Reply::Lost(_) if is == self || *is == after => Verdict::Kept,
            Reply::Acknowledged(_) | Reply::Rejected(_) | Reply::Lost(_) => Verdict::Partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use serde_json::json;

    use super::*;

    fn version(minor: u64) -> Version {
        Version::new(1, minor, 0)
    }

    fn deploy(minor: u64) -> Mutation {
        let digest = format!("{minor}{minor}");
        Mutation::Deploy { version: version(minor), digest, artifact: "artifact".into() }
    }

    fn after(mutations: &[Mutation]) -> State {
        let pool: Vec<_> = (0..4).map(deploy).collect();
        mutations.iter().fold(State::default(), |state, mutation| {
            assert!(state.allowed(&pool).contains(mutation), "{mutation:?} of {state:?}");
            state.after(mutation)
        })
    }

    fn promote(minor: u64) -> Mutation {
        Mutation::Promote(version(minor))
    }

    #[test]
    fn changes_follow_the_rules() {
        let two = [deploy(0), deploy(1), deploy(2)];
        let first = after(&two);
        assert_eq!((first.stable.clone(), first.versions.len()), (Some(version(0)), 3));

        let canary = first.after(&Mutation::Canary(version(1), 100_000));
        assert_eq!(canary.candidates, [(version(1), 100_000)].into());
        assert_eq!(canary.after(&Mutation::Rollback(None)), first);

        let promoted = canary.after(&promote(1));
        assert_eq!((&promoted.stable, &promoted.promoted), (&Some(version(1)), &vec![version(0)]));
        assert!(promoted.candidates.is_empty());
        assert_eq!(promoted.after(&Mutation::Rollback(None)), first);
        let twice = promoted.after(&promote(2));
        assert_eq!(twice.promoted, [version(0), version(1)]);
        assert_eq!(twice.after(&Mutation::Rollback(Some(version(0)))), first);

        let shadow = Mutation::Shadow(Some((version(2), WHOLE)));
        assert_eq!(first.after(&shadow).after(&Mutation::Shadow(None)), first);
    }

    #[test]
    fn forbidden_changes_are_not_offered() {
        let pool: Vec<_> = (0..4).map(deploy).collect();
        let state = after(&[
            deploy(0),
            deploy(1),
            deploy(2),
            deploy(3),
            promote(1),
            Mutation::Shadow(Some((version(3), WHOLE))),
            Mutation::Canary(version(2), 0),
        ]);
        let forbidden = [
            deploy(0),
            promote(0),
            promote(1),
            promote(3),
            Mutation::Canary(version(3), 100_000),
            Mutation::Undeploy(version(0)),
            Mutation::Undeploy(version(1)),
            Mutation::Undeploy(version(2)),
            Mutation::Undeploy(version(3)),
        ];
        let allowed = state.allowed(&pool);
        for mutation in forbidden {
            assert!(!allowed.contains(&mutation), "{mutation:?}");
        }
        assert!(allowed.contains(&promote(2)));
        assert!(State::default().allowed(&pool).iter().all(|mutation| mutation.kind() == "deploy"));
    }

    #[test]
    fn a_servers_state_is_parsed() {
        let versions = [0, 1, 2, 3].map(|minor| {
            json!({"version": format!("1.{minor}.0"), "digest": format!("sha256:{minor}{minor}")})
        });
        let model = json!({
            "model": "misbehave", "revision": 12, "stable": "1.1.0",
            "candidates": {"1.2.0": 100_000}, "shadow": {"version": "1.3.0", "share": 1_000_000},
            "promoted": ["1.0.0"], "versions": versions,
        });
        let wanted = after(&[
            deploy(0),
            deploy(1),
            deploy(2),
            deploy(3),
            promote(1),
            Mutation::Shadow(Some((version(3), WHOLE))),
            Mutation::Canary(version(2), 100_000),
        ]);
        assert_eq!(State::from_model(Some(&model)).unwrap(), wanted);
        assert_eq!(State::from_model(None).unwrap(), State::default());
        assert!(State::from_model(Some(&json!({"stable": "1.1.0"}))).is_err());
    }

    #[test]
    fn each_outcome_has_its_verdict() {
        let before = after(&[deploy(0), deploy(1)]);
        let (mutation, other) = (promote(1), before.after(&deploy(2)));
        let changed = before.after(&mutation);
        let done = Reply::Acknowledged(json!({}));
        let refused = Reply::Rejected(String::new());
        let lost = Reply::Lost(anyhow!("killed"));
        for (reply, is, verdict) in [
            (&done, &changed, Verdict::Kept),
            (&done, &before, Verdict::Lost),
            (&done, &other, Verdict::Partial),
            (&refused, &before, Verdict::Kept),
            (&refused, &changed, Verdict::Partial),
            (&lost, &before, Verdict::Kept),
            (&lost, &changed, Verdict::Kept),
            (&lost, &other, Verdict::Partial),
        ] {
            assert_eq!(before.judge(&mutation, reply, is), verdict, "{reply:?} {is:?}");
        }
    }
}
