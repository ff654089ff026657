//! Sequences of successes and failures of several callers, at simulated times.

use proptest::prelude::*;

use super::evidence::{CALLER_FAILURES, MAX_CALLERS};
use super::suspension::{FIRST_ROUND, LONGEST_ROUND, PROBES};
use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

fn caller(key: &str) -> CallerId {
    CallerId::new(key, None)
}

fn member(key: &str, index: usize) -> CallerId {
    CallerId::new(key, Some(index.to_string().as_bytes()))
}

/// Send a request on which the version fails; returns whether it was accepted.
fn fail(breaker: &Breaker, caller: CallerId, now: Instant) -> bool {
    let is_accepted = breaker.admit(caller, now).is_ok();
    if is_accepted {
        breaker.record_failure(caller, now);
    }
    is_accepted
}

fn succeed(breaker: &Breaker, caller: CallerId, now: Instant) -> bool {
    let is_accepted = breaker.check(caller, now).is_ok();
    assert_eq!(breaker.admit(caller, now).is_ok(), is_accepted);
    if is_accepted {
        breaker.record_success(caller, now);
    }
    is_accepted
}

fn fail_times(breaker: &Breaker, caller: CallerId, times: u32, now: Instant) {
    (0..times).for_each(|_| _ = fail(breaker, caller, now));
}

#[test]
fn only_the_failing_caller_is_refused() {
    let (breaker, now) = (Breaker::default(), Instant::now());
    let (bad, good) = (caller("bad"), caller("good"));
    fail_times(&breaker, bad, CALLER_FAILURES - 1, now);
    assert!(breaker.admit(bad, now).is_ok());
    assert_eq!(breaker.record_failure(bad, now), Some(SuspensionScope::Caller));
    assert_eq!(breaker.check(bad, now), Err(BreakerRefusal::Caller(FIRST_ROUND)));
    assert!(breaker.admit(bad, now).is_err());
    assert!(breaker.allows(now) && succeed(&breaker, good, now));
    assert!(breaker.check(member("bad", 1), now).is_ok(), "the sticky key distinguishes callers");
}

#[test]
fn failing_probes_of_a_caller_lengthen_its_rounds() {
    let (breaker, mut now) = (Breaker::default(), Instant::now());
    let bad = caller("bad");
    fail_times(&breaker, bad, CALLER_FAILURES, now);
    let mut lengths = Vec::new();
    for _ in 0..10 {
        let Err(BreakerRefusal::Caller(time)) = breaker.check(bad, now) else {
            panic!("it is refused")
        };
        lengths.push(time);
        now += time;
        let probes = (0..100).filter(|_| fail(&breaker, bad, now)).count();
        assert_eq!(probes, PROBES);
    }
    assert_eq!(lengths[..3], [1, 1, 2].map(Duration::from_secs), "{lengths:?}");
    assert_eq!(lengths.last(), Some(&LONGEST_ROUND));
    now += LONGEST_ROUND;
    assert!(succeed(&breaker, bad, now));
    assert!((0..100).all(|_| succeed(&breaker, bad, now)), "one success ends the suspension");
}

#[test]
fn a_caller_with_some_successes_is_never_refused() {
    let (breaker, mut now) = (Breaker::default(), Instant::now());
    let crowd = caller("crowd");
    for turn in 0..1000 {
        now += 10 * MILLISECOND;
        let accepted =
            if turn % 10 == 3 { succeed(&breaker, crowd, now) } else { fail(&breaker, crowd, now) };
        assert!(accepted, "{turn}");
    }
}

#[test]
fn an_old_suspension_is_not_renewed_by_one_failure() {
    let (breaker, now) = (Breaker::default(), Instant::now());
    for key in ["a", "b"] {
        fail_times(&breaker, caller(key), CALLER_FAILURES, now);
    }
    assert!(!breaker.allows(now));
    let later = now + Duration::from_secs(20 * 60);
    for key in ["a", "b", "c"] {
        assert!(fail(&breaker, caller(key), later));
        assert_eq!(breaker.check(caller(key), later), Ok(()), "{key}");
    }
    assert!(breaker.allows(later));
}

#[test]
fn a_version_failing_for_all_keys_is_suspended_and_probed() {
    let (breaker, now) = (Breaker::default(), Instant::now());
    for _ in 0..CALLER_FAILURES / 2 {
        ["a", "b"].into_iter().for_each(|key| _ = fail(&breaker, caller(key), now));
    }
    assert!(!breaker.allows(now));
    // Unknown keys may probe: each once, and only a few of them.
    assert!(fail(&breaker, caller("c"), now) && !fail(&breaker, caller("c"), now));
    let more = (0..100).filter(|index| fail(&breaker, caller(&index.to_string()), now)).count();
    assert_eq!(more, PROBES - 1);
    assert_eq!(breaker.check(caller("x"), now), Err(BreakerRefusal::Version(FIRST_ROUND)));
    // Their failures make the next round longer.
    let now = now + FIRST_ROUND;
    assert!(breaker.allows(now), "the round has ended");
    assert!(fail(&breaker, caller("y"), now));
    assert_eq!(breaker.refusal(now), Some(BreakerRefusal::Version(2 * FIRST_ROUND)));
    let now = now + 2 * FIRST_ROUND;
    for key in ["a", "b", "c", "y"] {
        assert!(succeed(&breaker, caller(key), now), "{key}");
    }
    assert!(breaker.allows(now) && succeed(&breaker, caller("z"), now));
}

#[test]
fn one_key_cannot_lengthen_the_suspension_of_a_version() {
    let (breaker, mut now) = (Breaker::default(), Instant::now());
    for _ in 0..CALLER_FAILURES / 2 {
        ["a", "b"].into_iter().for_each(|key| _ = fail(&breaker, caller(key), now));
    }
    for round in 0..5 {
        let Some(BreakerRefusal::Version(time)) = breaker.refusal(now) else { panic!("{round}") };
        assert_eq!(time, FIRST_ROUND, "{round}");
        now += time;
        (0..100).for_each(|index| _ = fail(&breaker, member("c", index), now));
    }
}

#[test]
fn many_sticky_keys_of_one_key_do_not_affect_other_keys() {
    let (breaker, mut now) = (Breaker::default(), Instant::now());
    let good = caller("good");
    for index in 0..20 * MAX_CALLERS {
        now += MILLISECOND;
        fail(&breaker, member("bad", index), now);
        assert!(breaker.allows(now), "{index}");
        if index % 700 == 699 {
            assert!(succeed(&breaker, good, now), "{index}");
        }
    }
}

#[test]
fn successful_callers_of_a_failing_key_are_accepted() {
    let (breaker, now) = (Breaker::default(), Instant::now());
    let good = member("shared", 0);
    fail(&breaker, member("shared", 1), now);
    assert!(succeed(&breaker, good, now));
    let failed = (2..100).filter(|index| fail(&breaker, member("shared", *index), now)).count();
    assert!(failed < 50, "{failed} of those that are not known were run");
    assert!((0..100).all(|_| succeed(&breaker, good, now)));
}

#[test]
fn a_caller_that_broke_a_batch_runs_alone_for_a_while() {
    let (breaker, now) = (Breaker::default(), Instant::now());
    let (one, other) = (caller("one"), caller("other"));
    assert!(!breaker.is_isolated(one, now));
    breaker.isolate(one, now);
    breaker.record_failure(other, now);
    for caller in [one, other] {
        assert!(breaker.is_isolated(caller, now + WINDOW / 4));
        assert!(!breaker.is_isolated(caller, now + 2 * WINDOW));
        assert!(breaker.check(caller, now).is_ok());
    }
    assert!(!breaker.is_isolated(caller("third"), now));
    breaker.isolate(one, now);
    (0..3).for_each(|_| breaker.record_success(one, now));
    assert!(!breaker.is_isolated(one, now), "most of its requests are good");
}

proptest! {
    /// Whatever one key sends, with any sticky keys and at any rate: a caller with another key
    /// whose requests succeed is never refused, and the version is never suspended.
    #[test]
    fn no_key_can_suspend_a_version_for_another(
        requests in prop::collection::vec((0_usize..5, 0_u64..2000, 0_usize..3, any::<bool>()), 1..400),
    ) {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        for (index, pause, who, is_good) in requests {
            now += Duration::from_millis(pause);
            let bad = if who == 0 { caller("bad") } else { member("bad", index * who) };
            if is_good && who == 2 {
                succeed(&breaker, bad, now);
            } else {
                fail(&breaker, bad, now);
            }
            prop_assert!(breaker.allows(now));
            if who == 1 {
                prop_assert!(succeed(&breaker, caller("good"), now));
            }
        }
    }

    /// A successful key is not refused beside two failing ones, even if it comes late.
    #[test]
    fn a_new_good_key_is_admitted_during_a_suspension(
        requests in prop::collection::vec((0_u64..3000, 0_usize..2), 1..200),
        late in 0_usize..200,
    ) {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        for (index, (pause, who)) in requests.into_iter().enumerate() {
            now += Duration::from_millis(pause);
            fail(&breaker, caller(["one", "two"][who]), now);
            if index >= late {
                prop_assert!(succeed(&breaker, caller("good"), now));
            }
        }
    }

    /// The number of records is bounded.
    #[test]
    fn the_number_of_tracked_callers_is_bounded(callers in 0..3 * MAX_CALLERS) {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for index in 0..callers {
            breaker.record_failure(member(&(index % 7).to_string(), index), now);
            breaker.record_success(member("good", index), now);
        }
        prop_assert!(breaker.lock().size() <= 2 * MAX_CALLERS);
    }
}
