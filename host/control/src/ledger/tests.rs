//! Tests of durability, and of the detection of losses.

use semver::Version;

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::format::FORMAT_WITHOUT_KEYS;
use super::storage::DatabaseFile;
use super::tables::AUDIT;
use super::*;
use crate::keys::Timestamp;
use crate::rollout::{Operation, Promotion, Routing, ShadowShare};
use guesthouse_artifact::Digest;

pub(super) fn open(folder: &Path) -> Ledger {
    Ledger::open(folder, false, OnLoss::Refuse).unwrap()
}

fn is_lost(folder: &Path, has_artifacts: bool) -> bool {
    matches!(Ledger::open(folder, has_artifacts, OnLoss::Refuse), Err(LedgerError::Lost(_)))
}

pub(super) fn change(operation: &'static str) -> Change {
    Change {
        author: Author { actor: "test".to_owned(), reason: Some("why".to_owned()) },
        operation,
        model: "toxicity".parse().unwrap(),
        version: Some(Version::new(1, 0, 0)),
        digest: Some(Digest::from_content(b"artifact")),
        status: Some("Promoted"),
        error: None,
        before: Routing::default(),
        after: Routing { stable: Some(Version::new(1, 0, 0)), ..Routing::default() },
    }
}

pub(super) fn state(revision: u64) -> ModelState {
    ModelState { revision, ..ModelState::default() }
}

pub(super) fn request(asked: &str) -> IdempotentRequest {
    IdempotentRequest::new("test", "key", &asked)
}

#[test]
fn committed_changes_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    assert_eq!(ledger.head().unwrap(), (0, no_hash()));
    ledger.commit(&change("promote"), &state(1), Some(&request("a")), "answer").unwrap();
    let failed = Change { error: Some("broken".to_owned()), status: None, ..change("deploy") };
    let last = ledger.record_failure(&failed).unwrap();
    assert_eq!((last.sequence, last.revision, last.outcome.as_str()), (2, 1, "failed"));
    drop(ledger);
    let ledger = open(folder.path());
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
fn a_repeated_request_gets_the_stored_response() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    assert_eq!(ledger.look_up(&request("a")).unwrap(), IdempotencyLookup::New);
    ledger.commit(&change("promote"), &state(1), Some(&request("a")), "answer").unwrap();
    let again = ledger.look_up(&request("a")).unwrap();
    assert_eq!(again, IdempotencyLookup::Answered("answer".to_owned()));
    assert_eq!(ledger.look_up(&request("b")).unwrap(), IdempotencyLookup::Mismatch);
    let other = IdempotentRequest::new("somebody else", "key", &"a");
    assert_eq!(ledger.look_up(&other).unwrap(), IdempotencyLookup::New);
}

/// The ledger keeps fingerprints across upgrades: if one of these changes, a request that is retried
/// after an upgrade is no longer recognised.
#[test]
fn fingerprints_are_stable() {
    let version = Version::new(1, 2, 0);
    let shadow = ShadowShare { version: version.clone(), share: 7 };
    let digest = Digest::from_content(b"artifact");
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
    let fingerprint = IdempotentRequest::new("test", "key", &("toxicity", operations)).fingerprint;
    assert_eq!(fingerprint, "2:a0d3f72f31bda97c42a1d1da0fb1f92467e0e193494d6a6cf42002b03581d8d2");
}

#[test]
fn stored_responses_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    ledger
        .write(None, |transaction| {
            for number in 0..=MAX_RESPONSES {
                let request = IdempotentRequest::new("test", &number.to_string(), &());
                remember(transaction, &request, "")?;
            }
            assert!(transaction.open_table(ANSWERS)?.len()? <= MAX_RESPONSES as u64);
            Ok(())
        })
        .unwrap();
}

#[test]
fn altered_and_removed_entries_are_detected() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
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
        .write(None, |transaction| {
            let mut altered = entries[3].clone();
            altered.reason = None;
            let json = serde_json::to_string(&altered).unwrap();
            transaction.open_table(AUDIT)?.insert(1, json.as_str())?;
            Ok(())
        })
        .unwrap();
    drop(ledger);
    assert!(is_lost(folder.path(), false));
}

#[test]
fn a_file_that_is_not_a_ledger_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    std::fs::write(&path, b"something else that somebody put here").unwrap();
    assert!(is_lost(folder.path(), false));
}

fn stored_key(name: &str) -> StoredKey {
    let time = Timestamp::from_system_time(SystemTime::now()).unwrap();
    let key = crate::keys::Key { name: name.parse().unwrap(), ..crate::keys::Key::demo() };
    let id = format!("id-{name}");
    StoredKey { id, key, created: time, created_by: "test".to_owned(), revoked: None }
}

pub(super) fn key_change(name: &str) -> KeyChange {
    KeyChange {
        author: Author { actor: "test".to_owned(), reason: None },
        operation: "create_key",
        key: stored_key(name),
        status: "KeyCreated",
        forgotten: Vec::new(),
    }
}

#[test]
fn keys_survive_a_restart_and_entries_hide_their_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    ledger.commit(&change("promote"), &state(1), None, "").unwrap();
    ledger.commit_key(&key_change("ann"), 2, Some(&request("a")), "answer").unwrap();
    let forgetful = KeyChange { forgotten: vec!["id-ann".to_owned()], ..key_change("bob") };
    ledger.commit_key(&forgetful, 3, None, "").unwrap();
    drop(ledger);
    let ledger = open(folder.path());
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
    let again = ledger.look_up(&request("a")).unwrap();
    assert_eq!(again, IdempotencyLookup::Answered("answer".to_owned()));
}

/// Entries of a release whose log had models only.
const OLD_ENTRIES: [&str; 2] = [
    r#"{"sequence":2,"revision":2,"time":"2026-11-22T22:00:45.305706Z","actor":"repository","reason":null,"operation":"deploy","model":"text-direction","version":"1.0.0","digest":"sha256:a4695e976d674c96ff111bc3d2815c39aa93274dc6ce2ed89d918c9a48930ec9","outcome":"applied","status":"Deployed","error":null,"before":{"stable":null,"candidates":{},"shadow":null,"promoted":[]},"after":{"stable":null,"candidates":{},"shadow":null,"promoted":[]},"previous_hash":"bbc279115660eb0ad38cb9f70ae266a8a092c42fa2a4a4d7e677ff1906c86032","hash":"6dc5280d7cef57a54a8d3be5d6e84ace16d2a29ff5bece99c2c82fcdfb235e2a"}"#,
    r#"{"sequence":1,"revision":1,"time":"2026-11-22T22:00:44.334070Z","actor":"configuration","reason":null,"operation":"configure","model":"toxicity","version":null,"digest":null,"outcome":"applied","status":"Configured","error":null,"before":{"stable":null,"candidates":{},"shadow":null,"promoted":[]},"after":{"stable":"1.0.0","candidates":{"2.0.0":100000},"shadow":null,"promoted":[]},"previous_hash":"0000000000000000000000000000000000000000000000000000000000000000","hash":"bbc279115660eb0ad38cb9f70ae266a8a092c42fa2a4a4d7e677ff1906c86032"}"#,
];

#[test]
fn entries_of_format_1_keep_their_hashes() {
    let parse = |json: &str| serde_json::from_str::<Entry>(json).unwrap();
    let entries = OLD_ENTRIES.map(parse);
    assert_eq!(check_chain(&entries), Ok(()));
    for (entry, json) in entries.iter().zip(OLD_ENTRIES) {
        assert_eq!(serde_json::to_string(entry).unwrap(), json);
    }
}

#[test]
fn a_ledger_of_format_1_is_upgraded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let database = Database::builder().create_with_backend(DatabaseFile::open(&path).unwrap());
    let database = database.unwrap();
    let transaction = database.begin_write().unwrap();
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
    drop(database);
    let ledger = open(folder.path());
    assert!(ledger.keys().unwrap().is_empty());
    ledger.commit_key(&key_change("ann"), 3, None, "").unwrap();
    drop(ledger);
    let ledger = open(folder.path());
    assert_eq!((ledger.keys().unwrap().len(), ledger.head().unwrap().0), (1, 3));
}

/// A state folder with three changes of models, and a revoked key as the last change.
fn revoked_last(folder: &Path) -> KeyHash {
    let ledger = open(folder);
    for revision in 1..=3 {
        ledger.commit(&change("promote"), &state(revision), None, "").unwrap();
    }
    ledger.commit_key(&key_change("ann"), 4, None, "").unwrap();
    let mut revoke = KeyChange { operation: "revoke_key", ..key_change("ann") };
    revoke.key.revoked = Some(revoke.key.created);
    ledger.commit_key(&revoke, 5, Some(&request("a")), "answer").unwrap();
    revoke.key.key.sha256
}

fn accept(folder: &Path) -> Ledger {
    Ledger::open(folder, true, OnLoss::Accept).unwrap()
}

#[test]
fn a_deleted_or_truncated_ledger_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let hash = revoked_last(folder.path());
    let whole = fs::read(&path).unwrap();
    for bytes in [None, Some(0), Some(100), Some(whole.len() / 2), Some(whole.len() - 1)] {
        match bytes {
            None => fs::remove_file(&path).unwrap(),
            Some(length) => fs::write(&path, &whole[..length]).unwrap(),
        }
        assert!(is_lost(folder.path(), true) && is_lost(folder.path(), false), "{bytes:?}");
    }
    let ledger = accept(folder.path());
    assert!(ledger.revoked_keys().contains(&hash));
    let entries = ledger.history(None, None, 10).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].operation.as_str(), entries[0].revision), ("accept_ledger_loss", 6));
    drop(ledger);
    // The loss is accepted once. The next start is normal.
    let ledger = open(folder.path());
    assert!(ledger.revoked_keys().contains(&hash));
    assert_eq!(ledger.head().unwrap().0, 6);
    // The damaged ledger is kept.
    assert!(folder.path().join("ledger.redb.damaged-1").exists());
}

#[test]
fn an_outdated_copy_of_the_ledger_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = open(folder.path());
    ledger.commit_key(&key_change("ann"), 1, None, "").unwrap();
    drop(ledger);
    let old = fs::read(&path).unwrap();
    let ledger = open(folder.path());
    let mut revoke = key_change("ann");
    revoke.key.revoked = Some(revoke.key.created);
    let hash = revoke.key.key.sha256;
    ledger.commit_key(&revoke, 2, None, "").unwrap();
    drop(ledger);
    fs::write(&path, &old).unwrap();
    assert!(is_lost(folder.path(), true));
    assert_eq!(fs::read(&path).unwrap(), old, "a ledger that is refused is left as it is");
    let ledger = accept(folder.path());
    assert!(ledger.keys().unwrap()[0].revoked.is_some());
    assert!(ledger.revoked_keys().contains(&hash));
    assert_eq!(ledger.head().unwrap().0, 3);
    let entries = ledger.history(None, None, 10).unwrap();
    assert_eq!(check_chain(&entries), Ok(()));
    assert_eq!(entries.len(), 2);
    drop(ledger);
    open(folder.path());
}

#[test]
fn a_lost_stored_response_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let ledger = open(folder.path());
    ledger.commit(&change("promote"), &state(1), None, "").unwrap();
    drop(ledger);
    let old = fs::read(&path).unwrap();
    open(folder.path()).remember(&request("a"), "answer").unwrap();
    fs::write(&path, &old).unwrap();
    assert!(is_lost(folder.path(), true));
}

#[test]
fn an_altered_state_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    revoked_last(folder.path());
    let path = folder.path().join("ledger.redb");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(KEYS).unwrap();
        let mut key = key_change("ann").key;
        key.revoked = None;
        put_key(&mut table, &key).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    assert!(is_lost(folder.path(), true));
}

#[test]
fn a_missing_or_damaged_head_file_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.head");
    revoked_last(folder.path());
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(is_lost(folder.path(), true));
    fs::write(&path, b"").unwrap();
    assert!(is_lost(folder.path(), true));
    fs::write(&path, whole.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()).unwrap();
    assert!(is_lost(folder.path(), true));
    // Of several records, the ledger confirms the last one.
    let mut torn = whole.clone();
    let end = torn.iter().rposition(|byte| *byte != 0).unwrap();
    torn[end - 1] ^= 1;
    fs::write(&path, &torn).unwrap();
    assert_eq!(open(folder.path()).head().unwrap().0, 5);
    assert!(!head::Noted::read(folder.path()).unwrap().unwrap().is_damaged);
}

#[test]
fn a_commit_missing_from_the_head_file_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.head");
    let hash = revoked_last(folder.path());
    let before = fs::read(&path).unwrap();
    let ledger = open(folder.path());
    ledger.commit(&change("promote"), &state(6), None, "").unwrap();
    drop(ledger);
    fs::write(&path, &before).unwrap();
    let ledger = open(folder.path());
    assert_eq!(ledger.head().unwrap().0, 6);
    drop(ledger);
    let noted = head::Noted::read(folder.path()).unwrap().unwrap();
    assert_eq!((noted.head.unwrap().revision, noted.revoked), (6, vec![hash]));
}

#[test]
fn artifacts_without_a_ledger_are_a_lost_ledger() {
    let folder = tempfile::tempdir().unwrap();
    assert!(is_lost(folder.path(), true));
    assert_eq!(accept(folder.path()).head().unwrap().0, 1);
    let new = tempfile::tempdir().unwrap();
    drop(open(new.path()));
    // There may be artifacts without a change, if none of them could be deployed.
    fs::remove_file(new.path().join("ledger.redb")).unwrap();
    drop(Ledger::open(new.path(), true, OnLoss::Refuse).unwrap());
}

/// The bits to flip: all bits of blocks that are not zero, and one bit of each block of zeros, another one
/// each time.
fn telling_bits(bytes: &[u8]) -> Vec<usize> {
    const BLOCK: usize = 32;
    let blocks = bytes.chunks(BLOCK).enumerate();
    let of_block = |(number, block): (usize, &[u8])| {
        let (start, bits) = (number * BLOCK * 8, block.len() * 8);
        if block.iter().any(|byte| *byte != 0) {
            (start..start + bits).collect::<Vec<_>>()
        } else {
            vec![start + number * 37 % bits]
        }
    };
    blocks.flat_map(of_block).collect()
}

#[test]
fn every_flipped_bit_is_detected_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(folder.path());
    ledger.commit(&change("promote"), &state(1), Some(&request("a")), "answer").unwrap();
    ledger.commit_key(&key_change("ann"), 2, None, "").unwrap();
    let mut revoke = KeyChange { operation: "revoke_key", ..key_change("ann") };
    revoke.key.revoked = Some(revoke.key.created);
    ledger.commit_key(&revoke, 3, None, "").unwrap();
    drop(ledger);
    let bytes = fs::read(folder.path().join("ledger.redb")).unwrap();
    let noted = head::Noted::read(folder.path()).unwrap().unwrap();
    let whole = open::logical_content(&bytes, &noted).unwrap();
    let bits = telling_bits(&bytes);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (bytes, noted, whole, bits) = (&bytes, &noted, &whole, &bits);
    let refused: usize = std::thread::scope(|scope| {
        let shards: Vec<_> = (0..threads)
            .map(|shard| {
                scope.spawn(move || {
                    let file = open::Flippable::new(bytes);
                    let mut refused = 0;
                    for bit in bits.iter().skip(shard).step_by(threads) {
                        match file.flipped(*bit, noted) {
                            None => refused += 1,
                            Some(content) => assert!(content == *whole, "bit {bit}"),
                        }
                    }
                    refused
                })
            })
            .collect();
        shards.into_iter().map(|shard| shard.join().unwrap()).sum()
    });
    assert!(refused > 1000, "{refused} of {}", bits.len());
}

#[test]
fn a_ledger_without_a_head_file_is_upgraded() {
    let folder = tempfile::tempdir().unwrap();
    revoked_last(folder.path());
    fs::remove_file(folder.path().join("ledger.head")).unwrap();
    assert!(is_lost(folder.path(), true));
    // An earlier release writes no head file.
    let database = Database::open(folder.path().join("ledger.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(NUMBERS).unwrap().remove("writes").unwrap();
    transaction.commit().unwrap();
    drop(database);
    let ledger = Ledger::open(folder.path(), true, OnLoss::Refuse).unwrap();
    assert_eq!((ledger.head().unwrap().0, ledger.revoked_keys().len()), (5, 1));
    ledger.commit(&change("promote"), &state(6), None, "").unwrap();
    drop(ledger);
    drop(open(folder.path()));
    fs::remove_file(folder.path().join("ledger.head")).unwrap();
    assert!(is_lost(folder.path(), true));
}
