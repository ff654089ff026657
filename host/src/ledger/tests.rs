//! What lasts, and what is noticed.

use semver::Version;

use super::*;
use crate::artifact::Digest;
use crate::keys::Time;
use crate::rollout::{Operation, Promotion, Routing, ShadowShare};

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
    Request::new("test", "key", &asked)
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
    let other = Request::new("somebody else", "key", &"a");
    assert_eq!(ledger.asked_before(&other).unwrap(), Before::Unknown);
}

/// The ledger keeps fingerprints across upgrades: if one of these changes, a request that is retried
/// after an upgrade is no longer recognised.
#[test]
fn fingerprints_stay_what_they_are() {
    let version = Version::new(1, 2, 0);
    let shadow = ShadowShare { version: version.clone(), share: 7 };
    let digest = Digest::of(b"artifact");
    let deploy = |promotion| Operation::Deploy { version: version.clone(), digest, promotion };
    let split = BTreeMap::from([(version.clone(), 9)]);
    let operations = [
        deploy(Promotion::No),
        deploy(Promotion::IfFirst),
        deploy(Promotion::Yes),
        Operation::Promote { version: version.clone(), supersede: true },
        Operation::Canary { version: version.clone(), weight: 100_000, supersede: false },
        Operation::Shadow(None),
        Operation::Shadow(Some(shadow)),
        Operation::Rollback { to: None },
        Operation::Rollback { to: Some(version.clone()) },
        Operation::Undeploy { version: version.clone() },
        Operation::Adopt { ready: vec![version] },
        Operation::Configure { split: Some(split) },
    ];
    let fingerprint = Request::new("test", "key", &("toxicity", operations)).fingerprint;
    assert_eq!(fingerprint, "2:a0d3f72f31bda97c42a1d1da0fb1f92467e0e193494d6a6cf42002b03581d8d2");
}

#[test]
fn answers_do_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&folder.path().join("ledger.redb")).unwrap();
    ledger
        .write(|transaction| {
            for number in 0..=MAX_ANSWERS {
                let request = Request::new("test", &number.to_string(), &());
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

fn stored_key(name: &str) -> StoredKey {
    let time = Time::at(SystemTime::now()).unwrap();
    let key = crate::keys::Key { name: name.parse().unwrap(), ..crate::keys::Key::demo() };
    let id = format!("id-{name}");
    StoredKey { id, key, created: time, created_by: "test".to_owned(), revoked: None }
}

fn key_change(name: &str) -> KeyChange {
    KeyChange {
        author: Author { actor: "test".to_owned(), reason: None },
        operation: "create_key",
        key: stored_key(name),
        status: "KeyCreated",
        forgotten: Vec::new(),
    }
}

#[test]
fn keys_last_with_their_entries_and_without_their_hashes_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = Ledger::open(&path).unwrap();
    ledger.commit(&change("promote"), &state(1), None, "").unwrap();
    ledger.commit_key(&key_change("ann"), 2, Some(&request("a")), "answer").unwrap();
    let forgetful = KeyChange { forgotten: vec!["id-ann".to_owned()], ..key_change("bob") };
    ledger.commit_key(&forgetful, 3, None, "").unwrap();
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    let names: Vec<_> = ledger.keys().unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(names, ["id-bob"]);
    assert_eq!(ledger.head().unwrap().0, 3);
    let entries = ledger.history(None, None, 10).unwrap();
    assert_eq!(check_chain(&entries), Ok(()));
    assert_eq!(entries[1].key.as_ref().unwrap().name.as_str(), "ann");
    assert!((&entries[1].model, &entries[1].before) == (&None, &None));
    let hash = String::from(stored_key("ann").key.sha256);
    assert!(!serde_json::to_string(&entries).unwrap().contains(&hash[..16]));
    let of_model = ledger.history(Some(&"toxicity".parse().unwrap()), None, 10).unwrap();
    assert_eq!(of_model.len(), 1);
    let again = ledger.asked_before(&request("a")).unwrap();
    assert_eq!(again, Before::Answered("answer".to_owned()));
}

/// Entries that a host wrote when the log was about models alone.
const OLD_ENTRIES: [&str; 2] = [
    r#"{"sequence":2,"revision":2,"time":"2026-11-22T22:00:45.305706Z","actor":"repository","reason":null,"operation":"deploy","model":"text-direction","version":"1.0.0","digest":"sha256:a4695e976d674c96ff111bc3d2815c39aa93274dc6ce2ed89d918c9a48930ec9","outcome":"applied","status":"Deployed","error":null,"before":{"stable":null,"candidates":{},"shadow":null,"promoted":[]},"after":{"stable":null,"candidates":{},"shadow":null,"promoted":[]},"previous_hash":"bbc279115660eb0ad38cb9f70ae266a8a092c42fa2a4a4d7e677ff1906c86032","hash":"6dc5280d7cef57a54a8d3be5d6e84ace16d2a29ff5bece99c2c82fcdfb235e2a"}"#,
    r#"{"sequence":1,"revision":1,"time":"2026-11-22T22:00:44.334070Z","actor":"configuration","reason":null,"operation":"configure","model":"toxicity","version":null,"digest":null,"outcome":"applied","status":"Configured","error":null,"before":{"stable":null,"candidates":{},"shadow":null,"promoted":[]},"after":{"stable":"1.0.0","candidates":{"2.0.0":100000},"shadow":null,"promoted":[]},"previous_hash":"0000000000000000000000000000000000000000000000000000000000000000","hash":"bbc279115660eb0ad38cb9f70ae266a8a092c42fa2a4a4d7e677ff1906c86032"}"#,
];

#[test]
fn entries_from_before_there_were_keys_have_the_hashes_that_they_had() {
    let parse = |json: &str| serde_json::from_str::<Entry>(json).unwrap();
    let entries = OLD_ENTRIES.map(parse);
    assert_eq!(check_chain(&entries), Ok(()));
    for (entry, json) in entries.iter().zip(OLD_ENTRIES) {
        assert_eq!(serde_json::to_string(entry).unwrap(), json);
    }
}

#[test]
fn a_ledger_from_before_there_were_keys_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let database = Database::builder().create_with_backend(DatabaseFile::open(&path).unwrap());
    let transaction = database.unwrap().begin_write().unwrap();
    {
        let mut numbers = transaction.open_table(NUMBERS).unwrap();
        numbers.insert("format", FORMAT_WITHOUT_KEYS).unwrap();
        numbers.insert("revision", 2).unwrap();
        transaction.open_table(MODELS).unwrap();
        transaction.open_table(ANSWERS).unwrap();
        let mut audit = transaction.open_table(AUDIT).unwrap();
        audit.insert(1, OLD_ENTRIES[1]).unwrap();
        audit.insert(2, OLD_ENTRIES[0]).unwrap();
    }
    transaction.commit().unwrap();
    let ledger = Ledger::open(&path).unwrap();
    assert!(ledger.keys().unwrap().is_empty());
    ledger.commit_key(&key_change("ann"), 3, None, "").unwrap();
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!((ledger.keys().unwrap().len(), ledger.head().unwrap().0), (1, 3));
}
