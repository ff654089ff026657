//! Examples of the rules, and properties that hold after any operations.

use std::collections::BTreeMap;

use guesthouse_artifact::Digest;
use guesthouse_model::Channel;
use proptest::prelude::*;
use semver::Version;

use super::*;

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn digest(text: &str) -> Digest {
    Digest::from_content(text.as_bytes())
}

fn try_apply(state: &ModelState, operation: Operation) -> Result<Transition, RolloutError> {
    let rules = Rules { is_ready: &|_| true, max_parked: 1, revision: state.revision + 1 };
    apply(state, &operation, &rules)
}

fn applied(state: &ModelState, operation: Operation) -> ModelState {
    try_apply(state, operation).unwrap().state
}

fn deploy(text: &str) -> Operation {
    deploy_as(text, text)
}

fn deploy_as(text: &str, content: &str) -> Operation {
    let (version, digest) = (version(text), digest(content));
    Operation::Deploy { version, digest, promotion: Promotion::No }
}

fn promote(text: &str) -> Operation {
    Operation::Promote { version: version(text), supersede: false }
}

fn canary(text: &str, weight: u32) -> Operation {
    Operation::Canary { version: version(text), weight, supersede: false }
}

/// Those versions are deployed, and the first is stable.
fn state(versions: &[&str]) -> ModelState {
    let mut state = ModelState::default();
    for text in versions {
        state = applied(&state, deploy(text));
    }
    applied(&state, Operation::Adopt { ready: vec![version(versions[0])] })
}

fn stable(state: &ModelState) -> String {
    state.routing.stable.as_ref().unwrap().to_string()
}

fn stages(state: &ModelState) -> Vec<&'static str> {
    let stage = |deployed: &Deployed| match deployed.stage {
        Stage::Deployed => "deployed",
        Stage::Parked(_) => "parked",
        Stage::Retired(_) => "retired",
    };
    state.versions.values().map(stage).collect()
}

#[test]
fn a_rollback_restores_the_previously_promoted_version() {
    let mut state = state(&["1.0.0", "1.1.0", "2.0.0", "3.0.0"]);
    state = applied(&state, promote("1.1.0"));
    state = applied(&state, canary("2.0.0", 10));
    let aborted = try_apply(&state, Operation::Rollback { to: None }).unwrap();
    assert_eq!((aborted.status, stable(&aborted.state).as_str()), (Status::Aborted, "1.1.0"));
    state = applied(&aborted.state, canary("3.0.0", 10));
    state = applied(&state, Operation::Rollback { to: None });
    let back = try_apply(&state, Operation::Rollback { to: None }).unwrap();
    assert_eq!((back.status, stable(&back.state).as_str()), (Status::RolledBack, "1.0.0"));
    let nothing = try_apply(&back.state, Operation::Rollback { to: None });
    assert_eq!(nothing, Err(RolloutError::NothingBefore(version("1.0.0"))));
}

#[test]
fn a_second_rollout_must_supersede_the_first() {
    let state = applied(&state(&["1.0.0", "1.1.0", "2.0.0"]), canary("1.1.0", 100));
    let active = Err(RolloutError::RolloutActive(version("1.1.0")));
    assert_eq!(try_apply(&state, canary("2.0.0", 5)), active);
    assert_eq!(try_apply(&state, promote("2.0.0")), active);
    let supersede = Operation::Canary { version: version("2.0.0"), weight: 5, supersede: true };
    let superseded = try_apply(&state, supersede).unwrap();
    assert_eq!(superseded.status, Status::Superseded);
    assert_eq!(superseded.state.routing.candidates, BTreeMap::from([(version("2.0.0"), 5)]));
    assert_eq!(stages(&superseded.state), ["deployed", "parked", "deployed"]);
    let raised = applied(&state, canary("1.1.0", 200));
    assert_eq!(raised.routing.candidates[&version("1.1.0")], 200);
}

#[test]
fn rejected_changes_have_a_reason_and_no_effect() {
    let state = applied(&state(&["1.0.0", "1.1.0", "2.0.0"]), promote("1.1.0"));
    let refused = |operation| try_apply(&state, operation).unwrap_err();
    let v = version;
    assert_eq!(refused(promote("1.0.0")), RolloutError::Downgrade(v("1.0.0"), v("1.1.0")));
    assert_eq!(refused(promote("9.0.0")), RolloutError::UnknownVersion(v("9.0.0")));
    assert_eq!(refused(canary("1.1.0", 1)), RolloutError::IsStable(v("1.1.0")));
    assert_eq!(refused(canary("2.0.0", WHOLE + 1)), RolloutError::OverWhole(1_000_001));
    let to = Operation::Rollback { to: Some(v("2.0.0")) };
    assert_eq!(refused(to), RolloutError::NeverPromoted(v("2.0.0")));
    let shadow = ShadowShare { version: v("1.1.0"), share: 1 };
    assert_eq!(refused(Operation::Shadow(Some(shadow))), RolloutError::IsStable(v("1.1.0")));
    let undeploy = |text| Operation::Undeploy { version: v(text) };
    assert_eq!(refused(undeploy("1.1.0")), RolloutError::InUse(v("1.1.0"), VersionUse::Stable));
    assert_eq!(
        refused(undeploy("1.0.0")),
        RolloutError::InUse(v("1.0.0"), VersionUse::RollbackTarget)
    );
    assert_eq!(
        refused(deploy_as("2.0.0", "other")),
        RolloutError::OtherContent(v("2.0.0"), digest("2.0.0"))
    );
    // Build metadata does not order, so it makes no other version.
    assert_eq!(
        refused(deploy_as("2.0.0+b", "other")),
        RolloutError::OtherContent(v("2.0.0"), digest("2.0.0"))
    );
    let rules = Rules { is_ready: &|_| false, max_parked: 1, revision: 9 };
    assert_eq!(apply(&state, &promote("2.0.0"), &rules), Err(RolloutError::NotReady(v("2.0.0"))));
}

#[test]
fn replaced_versions_are_parked_before_they_are_retired() {
    let mut state = state(&["1.0.0", "1.1.0", "1.2.0", "1.3.0"]);
    assert_eq!(stages(&state), ["deployed"; 4]);
    state = applied(&state, promote("1.1.0"));
    assert_eq!(stages(&state), ["parked", "deployed", "deployed", "deployed"]);
    // The candidate that came to nothing does not replace the target of a rollback.
    state = applied(&state, canary("1.3.0", 1));
    state = applied(&state, Operation::Rollback { to: None });
    assert_eq!(stages(&state), ["parked", "deployed", "deployed", "retired"]);
    state = applied(&state, promote("1.2.0"));
    assert_eq!(stages(&state), ["retired", "parked", "deployed", "retired"]);
    let loaded: Vec<_> = state.loaded().map(|(version, _)| version.to_string()).collect();
    assert_eq!(loaded, ["1.1.0", "1.2.0"]);
    state = applied(&state, Operation::Rollback { to: Some(version("1.0.0")) });
    assert_eq!(stages(&state), ["deployed", "retired", "parked", "retired"]);
}

#[test]
fn the_last_version_can_be_undeployed_for_good() {
    let mut state = state(&["1.0.0", "2.0.0"]);
    state = applied(&state, Operation::Undeploy { version: version("2.0.0") });
    state = applied(&state, Operation::Undeploy { version: version("1.0.0") });
    assert_eq!((state.versions.len(), state.routing), (0, Routing::default()));
    assert_eq!(state.withdrawn, [digest("2.0.0"), digest("1.0.0")]);
}

#[test]
fn a_changed_split_of_the_configuration_is_applied() {
    let both = |one, two| Some(BTreeMap::from([(version("1.0.0"), one), (version("2.0.0"), two)]));
    let configure = |split| Operation::Configure { split };
    let mut state = applied(&ModelState::default(), configure(both(900_000, 100_000)));
    for text in ["1.0.0", "2.0.0"] {
        state = applied(&state, deploy(text));
    }
    assert_eq!(stable(&state), "1.0.0");
    assert_eq!(state.routing.shares().count(), 2);
    state = applied(&state, promote("2.0.0"));
    // The configuration is unchanged, so later decisions stay.
    let again = applied(&state, configure(both(900_000, 100_000)));
    assert_eq!(again, state);
    let other = applied(&state, configure(both(500_000, 500_000)));
    assert_eq!(stable(&other), "1.0.0");
    assert_eq!(other.routing.candidates[&version("2.0.0")], 500_000);
    let silent = applied(&other, configure(None));
    assert_eq!(silent.routing, other.routing);
}

#[test]
fn a_weight_of_zero_gets_no_callers() {
    let state = applied(&state(&["1.0.0", "2.0.0"]), canary("2.0.0", 0));
    assert_eq!(state.routing.version_at(0), Some(&version("1.0.0")));
    assert_eq!(state.routing.channel(Channel::Canary), Some(&version("2.0.0")));
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let version = || (0_u64..4, 0_u64..3).prop_map(|(major, minor)| Version::new(major, minor, 0));
    let digest = |version: &Version| digest(&format!("{version}"));
    let promotion =
        prop_oneof![Just(Promotion::No), Just(Promotion::IfFirst), Just(Promotion::Yes)];
    let weight = prop_oneof![Just(0), Just(WHOLE), 0..=WHOLE + 1];
    prop_oneof![
        4 => (version(), promotion).prop_map(move |(version, promotion)| {
            Operation::Deploy { digest: digest(&version), version, promotion }
        }),
        2 => (version(), proptest::bool::ANY).prop_map(|(version, supersede)| Operation::Promote { version, supersede }),
        2 => (version(), weight, proptest::bool::ANY).prop_map(|(version, weight, supersede)| {
            Operation::Canary { version, weight, supersede }
        }),
        1 => prop::option::of((version(), 0..=WHOLE)).prop_map(|shadow| {
            Operation::Shadow(shadow.map(|(version, share)| ShadowShare { version, share }))
        }),
        2 => prop::option::of(version()).prop_map(|to| Operation::Rollback { to }),
        1 => version().prop_map(|version| Operation::Undeploy { version }),
        1 => prop::collection::vec(version(), 0..3).prop_map(|ready| Operation::Adopt { ready }),
    ]
}

proptest! {
    /// After any operations: versions in use are deployed and loaded, the shares add up to the whole, the
    /// bounds hold, and a refusal or a repetition changes nothing.
    #[test]
    fn every_reachable_state_is_servable(
        operations in prop::collection::vec(any_operation(), 1..60),
        max_parked in 0_usize..3,
    ) {
        let mut state = ModelState::default();
        for operation in operations {
            let deployed = state.versions.clone();
            let is_ready = |version: &Version| deployed.contains_key(version);
            let rules = Rules { is_ready: &is_ready, max_parked, revision: state.revision + 1 };
            // Versions that are ready are deployed.
            if let Operation::Adopt { ready } = &operation
                && !ready.iter().all(is_ready)
            {
                continue;
            }
            let Ok(outcome) = apply(&state, &operation, &rules) else { continue };
            let changed = outcome.state != state;
            prop_assert_eq!(outcome.state.revision, state.revision + u64::from(changed));
            state = outcome.state;
            let routing = &state.routing;
            for version in routing.stable.iter().chain(routing.candidates.keys())
                .chain(routing.shadow.iter().map(|shadow| &shadow.version))
            {
                prop_assert_eq!(state.versions.get(version).map(|held| held.stage), Some(Stage::Deployed));
            }
            prop_assert!(routing.promoted.iter().all(|before| state.versions.contains_key(before)));
            prop_assert!(routing.stable.is_some() || routing.promoted.is_empty() && !routing.is_split());
            if routing.stable.is_some() {
                prop_assert_eq!(routing.shares().map(|(_, share)| share).sum::<u32>(), WHOLE);
            }
            let parked = state.versions.values().filter(|held| matches!(held.stage, Stage::Parked(_)));
            prop_assert!(parked.count() <= max_parked);
        }
    }

    /// If the weight of one of several candidates is raised, it takes draws from the stable version or from
    /// older candidates. No draw moves back to the stable version.
    #[test]
    fn raising_a_weight_moves_no_caller_back_to_stable(
        weights in prop::collection::vec(0..300_000_u32, 1..4),
        raised in 0_usize..4,
        by in 0..100_000_u32,
        draw in 0..WHOLE,
    ) {
        let candidate = |index: usize| Version::new(2, index as u64, 0);
        let candidates = weights.iter().enumerate().map(|(index, weight)| (candidate(index), *weight));
        let mut routing = Routing {
            stable: Some(version("1.0.0")),
            candidates: candidates.collect(),
            ..Routing::default()
        };
        let before = routing.version_at(draw).cloned().unwrap();
        *routing.candidates.get_mut(&candidate(raised % weights.len())).unwrap() += by;
        let after = routing.version_at(draw).cloned().unwrap();
        prop_assert!(before == version("1.0.0") || after != version("1.0.0"));
        if weights.len() == 1 {
            prop_assert!(before == after || before == version("1.0.0"));
        }
    }
}
