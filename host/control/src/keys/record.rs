//! The record of a key: its name, hash, scopes, expiry and rate. The key itself is never stored.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::scope::{Scope, Scopes};
use crate::rate::Rate;
use guesthouse_runtime::clock::MAX_UNIX_SECONDS;

/// The longest name, in bytes. The name is part of every line of the access log.
const MAX_NAME_LENGTH: usize = 64;

/// The key of the demo, which is public.
const DEMO_KEY: &str = "local-demo-key";

/// The admin key of the demo, which is public.
const DEMO_ADMIN_KEY: &str = "local-demo-admin-key";

/// The name of a key in logs and in the history: 1 to 64 letters, digits, `-`, `_`, `.` and `@`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName(String);

/// A text is not a [`KeyName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key's name is 1 to {MAX_NAME_LENGTH} letters, digits, `-`, `_`, `.` and `@`")]
pub struct KeyNameError;

impl FromStr for KeyName {
    type Err = KeyNameError;

    fn from_str(text: &str) -> Result<Self, KeyNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
        let good = (1..=MAX_NAME_LENGTH).contains(&text.len()) && text.bytes().all(allowed);
        if good { Ok(Self(text.to_owned())) } else { Err(KeyNameError) }
    }
}

impl TryFrom<String> for KeyName {
    type Error = KeyNameError;

    fn try_from(text: String) -> Result<Self, KeyNameError> {
        text.parse()
    }
}

impl From<KeyName> for String {
    fn from(name: KeyName) -> Self {
        name.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl KeyName {
    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A time between 1970 and 9999, to the second, written in RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(SystemTime);

/// A text is not a [`Timestamp`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time is like 2027-01-01T00:00:00Z")]
pub struct TimestampError;

impl Timestamp {
    /// The timestamp of a system time.
    ///
    /// # Errors
    /// [`TimestampError`] if it is before 1970 or after 9999.
    pub fn from_system_time(time: SystemTime) -> Result<Self, TimestampError> {
        let since = time.duration_since(UNIX_EPOCH).map_err(|_before| TimestampError)?;
        if since.as_secs() < MAX_UNIX_SECONDS {
            Ok(Self(UNIX_EPOCH + Duration::from_secs(since.as_secs())))
        } else {
            Err(TimestampError)
        }
    }

    /// Parse an expiry: a time, or a duration from now (`90d`, `12h`).
    ///
    /// # Errors
    /// [`TimestampError`] if it is neither, or not in the future.
    pub fn parse_expiry(text: &str, now: SystemTime) -> Result<Self, TimestampError> {
        let time = match humantime::parse_duration(text) {
            Ok(after) => {
                now.checked_add(after).ok_or(TimestampError).and_then(Self::from_system_time)
            }
            Err(_) => text.parse(),
        };
        time.and_then(|time| if time.0 > now { Ok(time) } else { Err(TimestampError) })
    }

    /// Whether the time has passed. If the clock is before 1970, it counts as passed.
    pub fn is_past(self, now: SystemTime) -> bool {
        self.0 <= now || now <= UNIX_EPOCH
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let time = humantime::parse_rfc3339(text).map_err(|_error| TimestampError)?;
        Self::from_system_time(time)
    }
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;

    fn try_from(text: String) -> Result<Self, TimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(formatter)
    }
}

/// The SHA-256 of a key. It is compared in constant time and never view in full.
///
/// A slow hash would protect keys that can be guessed, at a cost for every request. 256 random bits cannot
/// be guessed at any speed. Keys that operators generate otherwise must be as strong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash(blake3::Hash);

/// A text is not a [`KeyHash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sha256 is not 64 hexadecimal digits")]
pub struct KeyHashError;

impl KeyHash {
    /// The hash of a key. `blake3::Hash` is used because it compares its 32 bytes in constant time; the bytes
    /// are a SHA-256, for which operators have tools.
    pub fn from_key(key: &[u8]) -> Self {
        let digest: [u8; 32] = Sha256::digest(key).into();
        Self(digest.into())
    }

    /// The first eight bytes, by which tables are indexed: few hashes share them, and they do not reveal
    /// the hash.
    pub(super) fn prefix(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *self.0.as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl TryFrom<String> for KeyHash {
    type Error = KeyHashError;

    fn try_from(text: String) -> Result<Self, KeyHashError> {
        blake3::Hash::from_hex(text).map(Self).map_err(|_error| KeyHashError)
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hash.0.to_hex().to_string()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A reload compares settings by this text, so it must differ for different hashes.
        write!(formatter, "KeyHash({:08x}…)", self.prefix() >> 32)
    }
}

/// A key: its name, and what it permits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Identifies the key in logs. No two valid keys have the same name.
    pub name: KeyName,
    /// The hash of the key.
    pub sha256: KeyHash,
    /// What it permits.
    pub scopes: Scopes,
    /// When it expires, if it does.
    pub expires: Option<Timestamp>,
    /// Its own rate limit of predictions; the default applies if there is none.
    pub rate: Option<Rate>,
}

impl Key {
    /// The key of the demo.
    pub fn demo() -> Self {
        Self::public_demo_key("demo", DEMO_KEY, Scope::PredictAll)
    }

    /// The admin key of the demo.
    pub fn demo_admin() -> Self {
        Self::public_demo_key("demo-admin", DEMO_ADMIN_KEY, Scope::Admin)
    }

    fn public_demo_key(name: &str, key: &str, scope: Scope) -> Self {
        Self {
            name: KeyName(name.to_owned()),
            sha256: KeyHash::from_key(key.as_bytes()),
            scopes: Scopes::only(scope),
            expires: None,
            rate: None,
        }
    }
}

/// A key that an operator has created through the admin API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredKey {
    /// Identifies it for ever. The name of a revoked key may be given to another one.
    pub id: String,
    /// The key.
    #[serde(flatten)]
    pub key: Key,
    /// When it was created.
    pub created: Timestamp,
    /// The name of the key with which it was created.
    pub created_by: String,
    /// When it was revoked, if it was.
    pub revoked: Option<Timestamp>,
}

/// What the admin API shows of a key: everything but its hash.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "documented at `Key` and `StoredKey`")]
pub struct KeyView {
    /// None if the key is not in the ledger.
    pub id: Option<String>,
    pub name: KeyName,
    pub scopes: Scopes,
    /// `active`, `expired` or `revoked`.
    pub state: &'static str,
    pub expires: Option<Timestamp>,
    pub rate: Option<Rate>,
    /// `configuration` or `ledger`.
    pub source: &'static str,
    pub created: Option<Timestamp>,
    pub created_by: Option<String>,
    pub revoked: Option<Timestamp>,
}

impl Key {
    /// The view of a key of the configuration.
    pub fn view(&self, now: SystemTime) -> KeyView {
        let is_expired = self.expires.is_some_and(|end| end.is_past(now));
        KeyView {
            id: None,
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            state: if is_expired { "expired" } else { "active" },
            expires: self.expires,
            rate: self.rate,
            source: "configuration",
            created: None,
            created_by: None,
            revoked: None,
        }
    }
}

impl StoredKey {
    /// The view of a key of the ledger.
    pub fn view(&self, now: SystemTime) -> KeyView {
        let view = self.key.view(now);
        KeyView {
            id: Some(self.id.clone()),
            state: if self.revoked.is_some() { "revoked" } else { view.state },
            source: "ledger",
            created: Some(self.created),
            created_by: Some(self.created_by.clone()),
            revoked: self.revoked,
            ..view
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_times_are_absolute_or_relative() {
        let now = humantime::parse_rfc3339("2026-11-23T01:00:00.5Z").unwrap();
        let parse_expiry =
            |text: &str| Timestamp::parse_expiry(text, now).map(|time| time.to_string());
        assert_eq!(parse_expiry("90d").unwrap(), "2027-02-21T01:00:00Z");
        assert_eq!(parse_expiry("1h 30m").unwrap(), "2026-11-23T02:30:00Z");
        assert_eq!(parse_expiry("2027-01-01T00:00:00Z").unwrap(), "2027-01-01T00:00:00Z");
        for bad in ["", "90", "0s", "2026-11-23T01:00:00Z", "2027-01-01", "9000y", "-1d"] {
            assert_eq!(parse_expiry(bad), Err(TimestampError), "{bad}");
        }
        let time: Timestamp = "2026-11-23T01:00:01Z".parse().unwrap();
        assert!(!time.is_past(now) && time.is_past(now + Duration::from_millis(500)));
    }

    #[test]
    fn key_names_are_validated() {
        for good in ["a", "ci", "ann@example.org", "team-a_2.1", &"n".repeat(64)] {
            assert_eq!(good.parse::<KeyName>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a\n", "ä", "a/b", &"n".repeat(65)] {
            assert_eq!(bad.parse::<KeyName>(), Err(KeyNameError), "{bad}");
        }
    }

    #[test]
    fn a_stored_key_round_trips_and_hides_its_hash() {
        let stored = StoredKey {
            id: "0123".to_owned(),
            key: Key { rate: Some(Rate::new(1.5, None).unwrap()), ..Key::demo() },
            created: "2026-11-23T01:00:00Z".parse().unwrap(),
            created_by: "ann".to_owned(),
            revoked: None,
        };
        let json = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<StoredKey>(&json).unwrap(), stored);
        let hash = String::from(stored.key.sha256);
        assert!(json.contains(&hash), "{json}");
        assert!(!format!("{stored:?}").contains(&hash[..20]), "{stored:?}");
    }
}
