//! Idempotency keys of predictions: a request that is sent again gets the stored answer.
//!
//! A caller that does not know the outcome of a request repeats it with the same key and pays for one
//! prediction. Answers are stored in memory, for a limited time and up to a number of bytes; errors are not
//! stored, so that a repeated request tries again. Keys of different callers are independent. Keys of
//! changes by operators are in the ledger instead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, HeaderName};
use guesthouse_control::router::Reason;
use guesthouse_model::VersionId;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};

pub(super) use super::codec::IDEMPOTENCY_FIELD as KEY_FIELD;
use super::codec::{Encoded, FieldValue};
use super::error::{ApiError, ErrorCode};
use crate::config::AnswerLimits;

/// Carries the idempotency key of a request; also the metadata of a gRPC call.
pub(crate) const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Marks a response that was stored; also the metadata of a gRPC response.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The longest key, in bytes: room for two UUIDs and words between them.
pub(crate) const MAX_KEY_LENGTH: usize = 128;

/// The memory that an answer takes in addition to its body, in bytes.
const ANSWER_OVERHEAD: usize = 512;

/// An answer that can be given again.
#[derive(Debug)]
pub(super) struct StoredAnswer {
    pub(super) encoded: Encoded,
    pub(super) version: VersionId,
    pub(super) reason: Reason,
    pub(super) rows: usize,
}

/// A SHA-256 digest: of a caller and its key, or of a request.
type Hash = [u8; 32];

/// The stored answers, and the keys of the requests that are being answered.
pub struct AnswerStore {
    /// By caller and key: the hash of the request, and the answer.
    stored: Cache<Hash, (Hash, Arc<StoredAnswer>)>,
    /// By caller and key: the hash of the request that is being answered.
    in_progress: Mutex<HashMap<Hash, Hash>>,
}

/// The result of looking up a key.
pub(super) enum Lookup {
    /// The request is new, and is to be answered now.
    New(PendingAnswer),
    /// The answer is stored.
    Answered(Arc<StoredAnswer>),
}

/// Reserves a key until its request is answered. If it is dropped before, the key is free again.
pub(super) struct PendingAnswer {
    store: Arc<AnswerStore>,
    key: Hash,
    request: Hash,
}

/// The idempotency key in the headers, if there is one.
pub(crate) fn key_from_headers(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let key = first.to_str().ok().filter(|_| values.next().is_none());
    key.map_or_else(|| Err(malformed_key()), parse_key).map(Some)
}

/// Reject a stream with an idempotency key in its headers, because the key would name all of its messages.
pub(super) fn reject_on_stream(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(KEY_HEADER) {
        let message = "an idempotency key names one request, and a stream has many";
        return Err(ApiError::malformed(message));
    }
    Ok(())
}

/// The idempotency key in a field beside the inputs.
pub(super) fn key_from_field(value: FieldValue) -> Result<String, ApiError> {
    let FieldValue::Text(key) = value else { return Err(malformed_key()) };
    str::from_utf8(&key).map_err(|_error| malformed_key()).and_then(parse_key)
}

fn parse_key(key: &str) -> Result<String, ApiError> {
    let is_valid = (1..=MAX_KEY_LENGTH).contains(&key.len())
        && key.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if is_valid { Ok(key.to_owned()) } else { Err(malformed_key()) }
}

fn malformed_key() -> ApiError {
    let message = format!("an idempotency key is 1 to {MAX_KEY_LENGTH} visible ASCII characters");
    ApiError::malformed(message)
}

/// A hash of all parts and of their lengths.
pub(super) fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

impl AnswerStore {
    /// An empty store.
    pub fn new(limits: AnswerLimits) -> Self {
        let weight = |_: &Hash, (_, answer): &(Hash, Arc<StoredAnswer>)| {
            u32::try_from(answer.encoded.body.len() + ANSWER_OVERHEAD).unwrap_or(u32::MAX)
        };
        let stored = Cache::builder()
            .max_capacity(limits.bytes)
            .weigher(weight)
            .time_to_live(limits.time)
            // An answer is requested once or never, so the oldest is evicted first.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { stored, in_progress: Mutex::default() }
    }

    /// Look up a caller's key; `request` is the [`hash`] of everything that the answer depends on.
    ///
    /// # Errors
    /// The same request is being answered, or the key was used for another request.
    pub(super) fn look_up(
        self: &Arc<Self>,
        caller: &str,
        key: &str,
        request: Hash,
    ) -> Result<Lookup, ApiError> {
        let key = hash(&[caller.as_bytes(), key.as_bytes()]);
        let mut in_progress = self.in_progress();
        if let Some(other) = in_progress.get(&key) {
            return Err(if *other == request { conflict() } else { mismatch() });
        }
        match self.stored.get(&key) {
            Some((other, _)) if other != request => Err(mismatch()),
            Some((_, answer)) => Ok(Lookup::Answered(answer)),
            None => {
                in_progress.insert(key, request);
                Ok(Lookup::New(PendingAnswer { store: Arc::clone(self), key, request }))
            }
        }
    }

    fn in_progress(&self) -> MutexGuard<'_, HashMap<Hash, Hash>> {
        // Each access is one insertion or removal, so a panic leaves the map consistent.
        self.in_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingAnswer {
    /// Store the answer.
    pub(super) fn complete(self, answer: Arc<StoredAnswer>) {
        // Before the key is free again, so that at no moment it is neither in progress nor stored.
        self.store.stored.insert(self.key, (self.request, answer));
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        self.store.in_progress().remove(&self.key);
    }
}

fn conflict() -> ApiError {
    ApiError::new(ErrorCode::IdempotencyConflict, "the same request is being answered")
}

fn mismatch() -> ApiError {
    let message = "the idempotency key was used for another request";
    ApiError::new(ErrorCode::IdempotencyMismatch, message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn answer(bytes: usize) -> Arc<StoredAnswer> {
        let version =
            VersionId { name: "toxicity".parse().unwrap(), version: "1.0.0".parse().unwrap() };
        let encoded = Encoded::message(vec![b'x'; bytes]);
        Arc::new(StoredAnswer { encoded, version, reason: Reason::Default, rows: 1 })
    }

    fn is_new(lookup: Result<Lookup, ApiError>) -> Option<PendingAnswer> {
        match lookup {
            Ok(Lookup::New(pending)) => Some(pending),
            _ => None,
        }
    }

    fn code(lookup: Result<Lookup, ApiError>) -> Option<ErrorCode> {
        lookup.err().map(|error| error.code)
    }

    #[test]
    fn a_key_is_answered_once_for_each_caller() {
        let answers = Arc::new(AnswerStore::new(AnswerLimits::default()));
        let (one, two) = (hash(&[b"one"]), hash(&[b"two"]));
        let pending = is_new(answers.look_up("ci", "a", one)).unwrap();
        assert_eq!(code(answers.look_up("ci", "a", one)), Some(ErrorCode::IdempotencyConflict));
        assert_eq!(code(answers.look_up("ci", "a", two)), Some(ErrorCode::IdempotencyMismatch));
        assert!(is_new(answers.look_up("ann", "a", two)).is_some());
        pending.complete(answer(3));
        let Ok(Lookup::Answered(again)) = answers.look_up("ci", "a", one) else {
            panic!("it was answered");
        };
        assert_eq!(&again.encoded.body[..], b"xxx");
        assert_eq!(code(answers.look_up("ci", "a", two)), Some(ErrorCode::IdempotencyMismatch));
        // One that came to nothing leaves nothing.
        drop(is_new(answers.look_up("ci", "b", one)).unwrap());
        assert!(is_new(answers.look_up("ci", "b", two)).is_some());
        assert!(answers.in_progress().is_empty());
    }

    #[test]
    fn responses_are_removed_when_old_or_too_many() {
        let time = Duration::from_millis(1);
        let answers = Arc::new(AnswerStore::new(AnswerLimits { time, ..AnswerLimits::default() }));
        is_new(answers.look_up("ci", "a", hash(&[]))).unwrap().complete(answer(1));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while is_new(answers.look_up("ci", "a", hash(&[]))).is_none() {
            assert!(std::time::Instant::now() < deadline, "it is kept for ever");
        }

        let bytes = 100_000;
        let answers = Arc::new(AnswerStore::new(AnswerLimits { bytes, ..AnswerLimits::default() }));
        for number in 0..100 {
            let pending = is_new(answers.look_up("ci", &number.to_string(), hash(&[]))).unwrap();
            pending.complete(answer(10_000));
            answers.stored.run_pending_tasks();
            assert!(answers.stored.weighted_size() <= bytes);
        }
        // The newest is there, the oldest is not.
        assert!(is_new(answers.look_up("ci", "99", hash(&[]))).is_none());
        assert!(is_new(answers.look_up("ci", "0", hash(&[]))).is_some());
    }

    #[test]
    fn fingerprint_parts_are_separated() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_ne!(hash(&[b"", b"a"]), hash(&[b"a", b""]));
    }

    #[test]
    fn idempotency_keys_are_short_and_printable() {
        let header = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(KEY_HEADER, value.parse().unwrap());
            key_from_headers(&headers)
        };
        assert_eq!(header("a 1").unwrap().as_deref(), Some("a 1"));
        assert!(key_from_headers(&HeaderMap::new()).unwrap().is_none());
        for bad in ["", "\u{e4}", &"x".repeat(129)] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
        assert!(key_from_field(FieldValue::Integer("5".to_owned())).is_err());
    }
}
