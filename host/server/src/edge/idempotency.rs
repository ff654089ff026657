//! Predictions that are asked for again: answered with what was answered before.
//!
//! A caller that names its request by an idempotency key can send it again when it does not know
//! what became of it, and pays for one prediction. What is remembered is the answer, in memory, for a
//! while and up to a number of bytes; errors are not, because to try again is what they are for. The
//! names of two callers never meet. Changes of what is served are remembered by the ledger instead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderMap, HeaderName};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};

use super::codec::{Encoded, FieldValue};
use super::error::{ApiError, ErrorCode};
use crate::config::AnswerLimits;
use guesthouse_control::router::Reason;
use guesthouse_model::VersionId;

/// The header that names a request.
pub(crate) const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The header of an answer that was given before.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The field of a body that names a request, for callers that cannot set headers.
pub(super) const KEY_FIELD: &str = "idempotency_key";

/// The longest key, in bytes: room for two UUIDs and words between them.
pub(crate) const MAX_KEY_LENGTH: usize = 128;

/// What an answer takes beside its bytes: its hashes, its version and its place in the store.
const ANSWER_OVERHEAD: usize = 512;

/// An answer as it was given.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) encoded: Encoded,
    pub(super) version: VersionId,
    pub(super) reason: Reason,
    pub(super) rows: usize,
}

/// SHA-256 of whose request it is and how it is named, or of what it asks.
type Hash = [u8; 32];

/// The answers that were given, and the requests that are being answered.
pub struct Answers {
    given: Cache<Hash, (Hash, Arc<Answer>)>,
    /// What they ask, by their names. There is one for a request under way at most.
    awaited: Mutex<HashMap<Hash, Hash>>,
}

/// What is known of a request.
pub(super) enum Before {
    /// Nothing: it is answered now.
    New(Ticket),
    /// It was answered with this.
    Answered(Arc<Answer>),
}

/// Holds the name of a request until it is answered, or dropped without an answer.
pub(super) struct Ticket {
    answers: Arc<Answers>,
    name: Hash,
    asked: Hash,
}

/// The name that a caller gives to its request, if it gives one.
pub(crate) fn key_of(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let key = first.to_str().ok().filter(|_| values.next().is_none());
    key.map_or_else(|| Err(malformed_key()), checked).map(Some)
}

/// Refuse a stream with an idempotency key: it would name all of its messages.
pub(super) fn refuse_on_stream(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(KEY_HEADER) {
        let message = "an idempotency key names one request, and a stream has many";
        return Err(ApiError::malformed(message));
    }
    Ok(())
}

/// The key that a field of the body is.
pub(super) fn key_in(value: FieldValue) -> Result<String, ApiError> {
    let FieldValue::Text(key) = value else { return Err(malformed_key()) };
    str::from_utf8(&key).map_err(|_error| malformed_key()).and_then(checked)
}

fn checked(key: &str) -> Result<String, ApiError> {
    let good = (1..=MAX_KEY_LENGTH).contains(&key.len())
        && key.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if good { Ok(key.to_owned()) } else { Err(malformed_key()) }
}

fn malformed_key() -> ApiError {
    let message = format!("an idempotency key is 1 to {MAX_KEY_LENGTH} visible ASCII characters");
    ApiError::malformed(message)
}

/// A hash of all parts; where one ends and the next begins counts.
pub(super) fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

impl Answers {
    /// None yet.
    pub fn new(limits: AnswerLimits) -> Self {
        let weight = |_: &Hash, (_, answer): &(Hash, Arc<Answer>)| {
            u32::try_from(answer.encoded.body.len() + ANSWER_OVERHEAD).unwrap_or(u32::MAX)
        };
        let given = Cache::builder()
            .max_capacity(limits.bytes)
            .weigher(weight)
            .time_to_live(limits.time)
            // All of them are asked for once or never: the oldest goes first.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { given, awaited: Mutex::default() }
    }

    /// A request of this caller under this key; `asked` is the [`hash`] of all that it asks.
    ///
    /// # Errors
    /// The same request is being answered, or the key names another one.
    pub(super) fn begin(
        self: &Arc<Self>,
        caller: &str,
        key: &str,
        asked: Hash,
    ) -> Result<Before, ApiError> {
        let name = hash(&[caller.as_bytes(), key.as_bytes()]);
        let mut awaited = self.awaited();
        if let Some(other) = awaited.get(&name) {
            return Err(if *other == asked { in_flight() } else { mismatch() });
        }
        match self.given.get(&name) {
            Some((other, _)) if other != asked => Err(mismatch()),
            Some((_, answer)) => Ok(Before::Answered(answer)),
            None => {
                awaited.insert(name, asked);
                Ok(Before::New(Ticket { answers: Arc::clone(self), name, asked }))
            }
        }
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<Hash, Hash>> {
        // One insertion or removal at a time: nothing is ever left half done.
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Keep the answer for who asks again.
    pub(super) fn answered(self, answer: Arc<Answer>) {
        // Before the name is free again: nobody sees a moment between.
        self.answers.given.insert(self.name, (self.asked, answer));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answers.awaited().remove(&self.name);
    }
}

fn in_flight() -> ApiError {
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

    fn answer(bytes: usize) -> Arc<Answer> {
        let version =
            VersionId { name: "toxicity".parse().unwrap(), version: "1.0.0".parse().unwrap() };
        let encoded = Encoded::message(vec![b'x'; bytes]);
        Arc::new(Answer { encoded, version, reason: Reason::Default, rows: 1 })
    }

    fn is_new(before: Result<Before, ApiError>) -> Option<Ticket> {
        match before {
            Ok(Before::New(ticket)) => Some(ticket),
            _ => None,
        }
    }

    fn code(before: Result<Before, ApiError>) -> Option<ErrorCode> {
        before.err().map(|error| error.code)
    }

    #[test]
    fn a_request_is_answered_once_for_each_caller() {
        let answers = Arc::new(Answers::new(AnswerLimits::default()));
        let (one, two) = (hash(&[b"one"]), hash(&[b"two"]));
        let ticket = is_new(answers.begin("ci", "a", one)).unwrap();
        assert_eq!(code(answers.begin("ci", "a", one)), Some(ErrorCode::IdempotencyConflict));
        assert_eq!(code(answers.begin("ci", "a", two)), Some(ErrorCode::IdempotencyMismatch));
        assert!(is_new(answers.begin("ann", "a", two)).is_some());
        ticket.answered(answer(3));
        let Ok(Before::Answered(again)) = answers.begin("ci", "a", one) else {
            panic!("it was answered");
        };
        assert_eq!(&again.encoded.body[..], b"xxx");
        assert_eq!(code(answers.begin("ci", "a", two)), Some(ErrorCode::IdempotencyMismatch));
        // One that came to nothing leaves nothing.
        drop(is_new(answers.begin("ci", "b", one)).unwrap());
        assert!(is_new(answers.begin("ci", "b", two)).is_some());
        assert!(answers.awaited().is_empty());
    }

    #[test]
    fn answers_go_when_they_are_old_or_too_many() {
        let time = Duration::from_millis(1);
        let answers = Arc::new(Answers::new(AnswerLimits { time, ..AnswerLimits::default() }));
        is_new(answers.begin("ci", "a", hash(&[]))).unwrap().answered(answer(1));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while is_new(answers.begin("ci", "a", hash(&[]))).is_none() {
            assert!(std::time::Instant::now() < deadline, "it is kept for ever");
        }

        let bytes = 100_000;
        let answers = Arc::new(Answers::new(AnswerLimits { bytes, ..AnswerLimits::default() }));
        for number in 0..100 {
            let ticket = is_new(answers.begin("ci", &number.to_string(), hash(&[]))).unwrap();
            ticket.answered(answer(10_000));
            answers.given.run_pending_tasks();
            assert!(answers.given.weighted_size() <= bytes);
        }
        // The newest is there, the oldest is not.
        assert!(is_new(answers.begin("ci", "99", hash(&[]))).is_none());
        assert!(is_new(answers.begin("ci", "0", hash(&[]))).is_some());
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_ne!(hash(&[b"", b"a"]), hash(&[b"a", b""]));
    }

    #[test]
    fn keys_are_short_visible_words() {
        let header = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(KEY_HEADER, value.parse().unwrap());
            key_of(&headers)
        };
        assert_eq!(header("a 1").unwrap().as_deref(), Some("a 1"));
        assert!(key_of(&HeaderMap::new()).unwrap().is_none());
        for bad in ["", "\u{e4}", &"x".repeat(129)] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
        assert!(key_in(FieldValue::Integer("5".to_owned())).is_err());
    }
}
