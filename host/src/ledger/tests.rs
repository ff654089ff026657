//! What lasts, and what is noticed.

use super::*;

fn change(operation: &'static str) -> Change {
    Change {
        author: Author { actor: "test".to_owned(), reason: Some("why".to_owned()) },
        operation,
        model: "toxicity".parse().unwrap(),
        version: Some(Version::new(1, 0, 0)),
        digest: Some(Digest::of(b"artifact")),
        status: Some("Promoted"),
        error: None,
        before: Routing::default(),
        after: Routing { stable: Some(Version::new(1, 0, 0)), ..Routing::default() },
    }
}

fn state(revision: u64) -> ModelState {
    ModelState { revision, ..ModelState::default() }
}

fn request(asked: &str) -> Request {
    Request::new("test", "key", &[asked])
}

#[test]
fn what_was_committed_is_there_after_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!(ledger.head().unwrap(), (0, no_hash()));
    ledger.commit(&change("promote"), &state(1), Some(&request("a")), "answer").unwrap();
    let failed = Change { error: Some("broken".to_owned()), status: None, ..change("deploy") };
    let last = ledger.note_failure(&failed).unwrap();
    assert_eq!((last.sequence, last.revision, last.outcome.as_str()), (2, 1, "failed"));
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!(ledger.models().unwrap().values().next().unwrap().revision, 1);
    assert_eq!(ledger.head().unwrap(), (1, last.hash.clone()));
    let entries = ledger.history(None, None, 10).unwrap();
    assert_eq!(entries[0], last);
    assert_eq!(entries[1].operation, "promote");
    let other: ModelName = "other".parse().unwrap();
    assert!(ledger.history(Some(&other), None, 10).unwrap().is_empty());
    assert_eq!(ledger.history(None, Some(2), 10).unwrap().len(), 1);
}

#[test]
fn who_asks_again_is_told_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&folder.path().join("ledger.redb")).unwrap();
    assert_eq!(ledger.asked_before(&request("a")).unwrap(), Before::Unknown);
    ledger.commit(&change("promote"), &state(1), Some(&request("a")), "answer").unwrap();
    let again = ledger.asked_before(&request("a")).unwrap();
    assert_eq!(again, Before::Answered("answer".to_owned()));
    assert_eq!(ledger.asked_before(&request("b")).unwrap(), Before::Mismatch);
    let other = Request::new("somebody else", "key", &["a"]);
    assert_eq!(ledger.asked_before(&other).unwrap(), Before::Unknown);
    // The parts of what is asked are kept apart.
    let parts = |asked: &[&str]| Request::new("test", "key", asked).fingerprint;
    assert_ne!(parts(&["ab", "c"]), parts(&["a", "bc"]));
}

#[test]
fn answers_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&folder.path().join("ledger.redb")).unwrap();
    ledger
        .write(|transaction| {
            for number in 0..=MAX_ANSWERS {
                let request = Request::new("test", &number.to_string(), &[]);
                remember(transaction, &request, "")?;
            }
            assert!(transaction.open_table(ANSWERS)?.len()? <= MAX_ANSWERS as u64);
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_was_altered_or_taken_out_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = Ledger::open(&path).unwrap();
    for revision in 1..=4 {
        ledger.commit(&change("promote"), &state(revision), None, "").unwrap();
    }
    let entries = ledger.history(None, None, 10).unwrap();
    assert_eq!(check_chain(&entries), Ok(()));
    let mut altered = entries.clone();
    altered[1].actor = "nobody".to_owned();
    assert!(check_chain(&altered).unwrap_err().contains("entry 3"));
    altered[1].hash = altered[1].own_hash();
    assert!(check_chain(&altered).unwrap_err().contains("entry 4"));
    let mut without = entries.clone();
    without.remove(2);
    assert!(check_chain(&without).is_err());
    ledger
        .write(|transaction| {
            let mut altered = entries[3].clone();
            altered.reason = None;
            let json = serde_json::to_string(&altered).unwrap();
            transaction.open_table(AUDIT)?.insert(1, json.as_str())?;
            Ok(())
        })
        .unwrap();
    drop(ledger);
    assert!(matches!(Ledger::open(&path), Err(LedgerError::Untrusted(_))));
}

#[test]
fn a_file_that_is_no_ledger_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    std::fs::write(&path, b"something else that somebody put here").unwrap();
    assert!(Ledger::open(&path).is_err());
}
