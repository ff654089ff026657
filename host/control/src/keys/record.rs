//! What is known of a key: never the key itself, only its hash.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::scope::{Scope, Scopes};
use crate::rate::Rate;
use guesthouse_runtime::clock::MAX_UNIX_SECONDS;

/// The longest name, in bytes: it stands in each line of the log.
const MAX_NAME_LENGTH: usize = 64;

/// The key of the demonstration, which everybody knows.
const DEMO_KEY: &str = "local-demo-key";

/// The same for those who change what is served.
const DEMO_ADMIN_KEY: &str = "local-demo-admin-key";

/// Whose key it is, in the log and in the history: 1 to 64 letters, digits, `-`, `_`, `.` and `@`.
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
    /// The name as it stands in the log.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A point in time that RFC 3339 can write, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(SystemTime);

/// A text is not a [`Time`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time is like 2027-01-01T00:00:00Z")]
pub struct TimeError;

impl Time {
    /// This moment, or that one.
    ///
    /// # Errors
    /// [`TimeError`], if it is before 1970 or after 9999.
    pub fn at(time: SystemTime) -> Result<Self, TimeError> {
        let since = time.duration_since(UNIX_EPOCH).map_err(|_before| TimeError)?;
        if since.as_secs() < MAX_UNIX_SECONDS {
            Ok(Self(UNIX_EPOCH + Duration::from_secs(since.as_secs())))
        } else {
            Err(TimeError)
        }
    }

    /// When something that is to end ends: at a time, or after one (`90d`, `12h`).
    ///
    /// # Errors
    /// [`TimeError`], if it is neither, or not to come.
    pub fn to_come(text: &str, now: SystemTime) -> Result<Self, TimeError> {
        let time = match humantime::parse_duration(text) {
            Ok(after) => now.checked_add(after).ok_or(TimeError).and_then(Self::at),
            Err(_) => text.parse(),
        };
        time.and_then(|time| if time.0 > now { Ok(time) } else { Err(TimeError) })
    }

    /// Whether it has come. By a clock that cannot be right, it has.
    pub fn is_over(self, now: SystemTime) -> bool {
        self.0 <= now || now <= UNIX_EPOCH
    }
}

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let time = humantime::parse_rfc3339(text).map_err(|_error| TimeError)?;
        Self::at(time)
    }
}

impl TryFrom<String> for Time {
    type Error = TimeError;

    fn try_from(text: String) -> Result<Self, TimeError> {
        text.parse()
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(formatter)
    }
}

/// The SHA-256 of a key. Compared in constant time, and never shown whole.
///
/// A hash that is slow on purpose would protect keys that can be guessed; 256 random bits cannot be,
/// however fast somebody tries, and every request would pay for it. Keys of the operator's own making
/// have to be as good.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash(blake3::Hash);

/// A text is not a [`KeyHash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sha256 is not 64 hexadecimal digits")]
pub struct KeyHashError;

impl KeyHash {
    /// Of a key. `blake3::Hash` is any 32 bytes that are compared in constant time; these are a SHA-256,
    /// which everybody has a tool for.
    pub fn of(key: &[u8]) -> Self {
        let digest: [u8; 32] = Sha256::digest(key).into();
        Self(digest.into())
    }

    /// Where to look for it: enough of it to find few others there, and too little to say what it is.
    pub(super) fn place(self) -> u64 {
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
        // Settings are compared and shown by this: it tells hashes apart.
        write!(formatter, "KeyHash({:08x}…)", self.place() >> 32)
    }
}

/// A key: whose it is, and what it is good for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Stands in the log in place of the key. No two keys that are good have the same.
    pub name: KeyName,
    /// The hash of it.
    pub sha256: KeyHash,
    /// What it is good for.
    pub scopes: Scopes,
    /// When it ends, if it does.
    pub expires: Option<Time>,
    /// How often it may ask for predictions, if not as often as others.
    pub rate: Option<Rate>,
}

impl Key {
    /// The key of the demonstration.
    pub fn demo() -> Self {
        Self::known_to_all("demo", DEMO_KEY, Scope::PredictAll)
    }

    /// The admin key of the demonstration.
    pub fn demo_admin() -> Self {
        Self::known_to_all("demo-admin", DEMO_ADMIN_KEY, Scope::Admin)
    }

    fn known_to_all(name: &str, key: &str, scope: Scope) -> Self {
        Self {
            name: KeyName(name.to_owned()),
            sha256: KeyHash::of(key.as_bytes()),
            scopes: Scopes::only(scope),
            expires: None,
            rate: None,
        }
    }
}

/// A key that was made by an operator of the running server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredKey {
    /// Names it for good: its name may be given to another key once it is revoked.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub key: Key,
    /// When it was made.
    pub created: Time,
    /// Whose key it was made with.
    pub created_by: String,
    /// When it was revoked, if it was.
    pub revoked: Option<Time>,
}

/// What may be shown of a key: everything but its hash.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "documented at `Key` and `StoredKey`")]
pub struct ShownKey {
    /// None of a key that is not in the ledger.
    pub id: Option<String>,
    pub name: KeyName,
    pub scopes: Scopes,
    /// `active`, `expired` or `revoked`.
    pub state: &'static str,
    pub expires: Option<Time>,
    pub rate: Option<Rate>,
    /// `configuration` or `ledger`.
    pub source: &'static str,
    pub created: Option<Time>,
    pub created_by: Option<String>,
    pub revoked: Option<Time>,
}

impl Key {
    /// What may be shown of a key of the configuration.
    pub fn shown(&self, now: SystemTime) -> ShownKey {
        let is_over = self.expires.is_some_and(|end| end.is_over(now));
        ShownKey {
            id: None,
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            state: if is_over { "expired" } else { "active" },
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
    /// What may be shown of it.
    pub fn shown(&self, now: SystemTime) -> ShownKey {
        let shown = self.key.shown(now);
        ShownKey {
            id: Some(self.id.clone()),
            state: if self.revoked.is_some() { "revoked" } else { shown.state },
            source: "ledger",
            created: Some(self.created),
            created_by: Some(self.created_by.clone()),
            revoked: self.revoked,
            ..shown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_times_are_absolute_or_relative() {
        let now = humantime::parse_rfc3339("2026-11-23T01:00:00.5Z").unwrap();
        let to_come = |text: &str| Time::to_come(text, now).map(|time| time.to_string());
        assert_eq!(to_come("90d").unwrap(), "2027-02-21T01:00:00Z");
        assert_eq!(to_come("1h 30m").unwrap(), "2026-11-23T02:30:00Z");
        assert_eq!(to_come("2027-01-01T00:00:00Z").unwrap(), "2027-01-01T00:00:00Z");
        for bad in ["", "90", "0s", "2026-11-23T01:00:00Z", "2027-01-01", "9000y", "-1d"] {
            assert_eq!(to_come(bad), Err(TimeError), "{bad}");
        }
        let time: Time = "2026-11-23T01:00:01Z".parse().unwrap();
        assert!(!time.is_over(now) && time.is_over(now + Duration::from_millis(500)));
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
