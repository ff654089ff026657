//! API keys: what a caller may do, how often, and until when.
//!
//! One table has all keys, those of the configuration and those that operators have created; the public
//! listeners and the admin API share it. A change replaces the whole table. A request uses the table of its
//! own arrival, so a revoked key is refused from the next request on, also on a connection that is open. Keys
//! are only stored as SHA-256 hashes; the ledger keeps those of operators.

mod record;
mod scope;
mod secret;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

pub use record::{
    Key, KeyHash, KeyHashError, KeyName, KeyNameError, KeyView, StoredKey, Timestamp,
    TimestampError,
};
pub use scope::{Scope, ScopeError, Scopes, ScopesError};
pub use secret::{PREFIX, RandomnessError, generate};

use crate::rate::{Bucket, Rate};

/// The most keys that operators may create, and the most that the configuration may have. More callers than
/// these need more than one machine, and a table of this size is rebuilt in a millisecond.
pub const MAX_KEYS: usize = 1000;

/// How many revoked keys are remembered, so that their use is counted as `revoked`. Beyond that, the key that
/// was revoked first is forgotten and counts as `unknown`.
pub const MAX_REVOKED: usize = 1000;

/// The longest key that is accepted, in bytes.
const MAX_KEY_LENGTH: usize = 4096;

/// Why a caller is not authenticated. The response does not say which of the reasons it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthFailure {
    /// There is no key.
    Missing,
    /// There are several, or it cannot be a key.
    Malformed,
    /// There is no such key.
    Unknown,
    /// It has expired.
    Expired,
    /// It was revoked.
    Revoked,
    /// It is valid, but does not have the scope.
    Forbidden,
}

impl AuthFailure {
    const ALL: [Self; 6] = [
        Self::Missing,
        Self::Malformed,
        Self::Unknown,
        Self::Expired,
        Self::Revoked,
        Self::Forbidden,
    ];

    /// The value in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Forbidden => "forbidden",
        }
    }
}

/// Failed authentications since the start, by reason.
#[derive(Debug, Default)]
pub struct AuthFailures([AtomicU64; AuthFailure::ALL.len()]);

impl AuthFailures {
    /// Count a failure.
    pub fn count(&self, failure: AuthFailure) {
        self.0[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All counters with the values of [`AuthFailure::as_str`].
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |failure| self.0[failure as usize].load(Ordering::Relaxed);
        AuthFailure::ALL.into_iter().map(move |failure| (failure.as_str(), count(failure)))
    }
}

/// An authenticated caller: the holder of a key.
#[derive(Debug)]
pub struct Caller {
    key: Key,
    is_revoked: bool,
    /// The state of its rate limit.
    bucket: Option<Arc<Bucket>>,
}

impl Caller {
    /// The name of the key.
    pub fn name(&self) -> &str {
        self.key.name.as_str()
    }

    /// What the key permits.
    pub fn scopes(&self) -> &Scopes {
        &self.key.scopes
    }

    /// The state of its rate limit; none if predictions are not limited.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_deref()
    }
}

/// A key of the configuration has the name or the hash of another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two keys are the same, or have the name `{0}`")]
pub struct DuplicateKey(pub KeyName);

/// The table of all keys.
#[derive(Default)]
pub struct Keys {
    table: ArcSwap<Table>,
    /// Locked while the table is rebuilt.
    sources: Mutex<Sources>,
    failures: AuthFailures,
}

#[derive(Default)]
struct Table {
    /// By the prefix of their hashes.
    callers: HashMap<u64, Vec<Arc<Caller>>>,
    /// Hashes of revoked keys, whether another source has them or not.
    revoked: Arc<HashSet<KeyHash>>,
}

#[derive(Debug, Default, Clone)]
struct Sources {
    configured: Vec<Key>,
    /// The rate limit of keys without one of their own.
    default_rate: Option<Rate>,
    stored: Vec<StoredKey>,
    revoked: Arc<HashSet<KeyHash>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(formatter)
    }
}

impl Keys {
    /// Replace the keys of the configuration. Keys that stay keep the state of their rate limits.
    ///
    /// # Errors
    /// [`DuplicateKey`]; then nothing has changed.
    pub fn replace_configured(
        &self,
        configured: Vec<Key>,
        default_rate: Option<Rate>,
    ) -> Result<(), DuplicateKey> {
        let mut sources = self.lock();
        sources.check(&configured)?;
        let (stored, revoked) = (std::mem::take(&mut sources.stored), sources.revoked.clone());
        self.publish(&mut sources, Sources { configured, default_rate, stored, revoked });
        Ok(())
    }

    /// Check that these keys can become those of the configuration.
    ///
    /// # Errors
    /// [`DuplicateKey`].
    pub fn check_configured(&self, configured: &[Key]) -> Result<(), DuplicateKey> {
        self.lock().check(configured)
    }

    /// Replace the keys of the ledger.
    pub fn replace_stored(&self, stored: Vec<StoredKey>) {
        let mut sources = self.lock();
        let configured = std::mem::take(&mut sources.configured);
        let (default_rate, revoked) = (sources.default_rate, sources.revoked.clone());
        self.publish(&mut sources, Sources { configured, default_rate, stored, revoked });
    }

    /// Set the hashes that count as revoked, whatever the ledger says of them.
    pub fn set_revoked(&self, revoked: HashSet<KeyHash>) {
        let mut sources = self.lock();
        let new = Sources { revoked: Arc::new(revoked), ..std::mem::take(&mut *sources) };
        self.publish(&mut sources, new);
    }

    /// The keys of the configuration.
    pub fn configured(&self) -> Vec<Key> {
        self.lock().configured.clone()
    }

    /// The keys of the ledger, revoked ones included, the oldest first.
    pub fn stored(&self) -> Vec<StoredKey> {
        self.lock().stored.clone()
    }

    /// Whether any key that is not revoked has such scopes. Expired keys count.
    pub fn any_scopes(&self, wanted: impl Fn(&Scopes) -> bool) -> bool {
        let table = self.table.load();
        table
            .callers
            .values()
            .flatten()
            .any(|caller| !caller.is_revoked && wanted(&caller.key.scopes))
    }

    /// The counters of failed authentications.
    pub fn failures(&self) -> &AuthFailures {
        &self.failures
    }

    /// The caller that holds this key.
    ///
    /// The hash is compared in constant time. The time of the lookup depends on the prefix of the hash, which
    /// does not help an attacker: a key whose SHA-256 has a certain prefix is no closer to a valid one.
    ///
    /// # Errors
    /// [`AuthFailure`], which is counted.
    pub fn authenticate(
        &self,
        given: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Arc<Caller>, AuthFailure> {
        let outcome = match given {
            None => Err(AuthFailure::Missing),
            Some(key) if key.len() > MAX_KEY_LENGTH || secret::is_malformed(key) => {
                Err(AuthFailure::Malformed)
            }
            Some(key) => self.table.load().find(KeyHash::from_key(key), now),
        };
        outcome.inspect_err(|failure| self.failures.count(*failure))
    }

    fn publish(&self, sources: &mut Sources, new: Sources) {
        let table = Table::new(&new, &self.table.load());
        *sources = new;
        self.table.store(Arc::new(table));
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    /// Check that no two keys have the same name or hash.
    fn check(&self, configured: &[Key]) -> Result<(), DuplicateKey> {
        let stored = self.stored.iter();
        let stored = stored.filter(|stored| stored.revoked.is_none()).map(|stored| &stored.key);
        let others: Vec<_> = stored.chain(configured).collect();
        for (at, key) in others.iter().enumerate() {
            let same = |other: &&&Key| other.name == key.name || other.sha256 == key.sha256;
            if others[..at].iter().any(|other| same(&other)) {
                return Err(DuplicateKey(key.name.clone()));
            }
        }
        Ok(())
    }
}

impl Table {
    /// Build a table. Rate limits keep the state that they have in the old one.
    fn new(sources: &Sources, old: &Self) -> Self {
        let mut callers = HashMap::<u64, Vec<_>>::new();
        let configured = sources.configured.iter().map(|key| (key, false));
        let stored = sources.stored.iter().map(|stored| (&stored.key, stored.revoked.is_some()));
        for (key, is_revoked) in configured.chain(stored) {
            let is_revoked = is_revoked || sources.revoked.contains(&key.sha256);
            let rate = key.rate.or(sources.default_rate).filter(|_| !is_revoked);
            let bucket = rate.map(|rate| {
                let held = old.matching(key.sha256).find_map(|caller| caller.bucket.clone());
                let held = held.filter(|bucket| bucket.rate() == rate);
                held.unwrap_or_else(|| Arc::new(Bucket::new(rate)))
            });
            let caller = Caller { key: key.clone(), is_revoked, bucket };
            callers.entry(key.sha256.prefix()).or_default().push(Arc::new(caller));
        }
        Self { callers, revoked: Arc::clone(&sources.revoked) }
    }

    fn matching(&self, hash: KeyHash) -> impl Iterator<Item = &Arc<Caller>> {
        let near = self.callers.get(&hash.prefix()).into_iter().flatten();
        near.filter(move |caller| caller.key.sha256 == hash)
    }

    /// Find a key by its hash. A revoked key is never valid again, whatever the configuration or the ledger
    /// says.
    fn find(&self, hash: KeyHash, now: SystemTime) -> Result<Arc<Caller>, AuthFailure> {
        if self.revoked.contains(&hash) {
            return Err(AuthFailure::Revoked);
        }
        let mut found = Err(AuthFailure::Unknown);
        for caller in self.matching(hash) {
            if caller.is_revoked {
                return Err(AuthFailure::Revoked);
            }
            found = match caller.key.expires {
                Some(end) if end.is_past(now) => Err(AuthFailure::Expired),
                Some(_) | None => Ok(Arc::clone(caller)),
            };
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, secret: &str) -> Key {
        let name = name.parse().unwrap();
        Key { name, sha256: KeyHash::from_key(secret.as_bytes()), ..Key::demo() }
    }

    fn stored(name: &str, secret: &str) -> StoredKey {
        StoredKey {
            id: name.to_owned(),
            key: key(name, secret),
            created: Timestamp::from_system_time(SystemTime::now()).unwrap(),
            created_by: "test".to_owned(),
            revoked: None,
        }
    }

    fn check(keys: &Keys, given: &str) -> Result<String, AuthFailure> {
        let caller = keys.authenticate(Some(given.as_bytes()), SystemTime::now());
        caller.map(|caller| caller.name().to_owned())
    }

    #[test]
    fn unknown_keys_are_rejected() {
        // The SHA-256 of "secret", by sha256sum.
        let sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let ci = Key { sha256: sha256.to_owned().try_into().unwrap(), ..key("ci", "") };
        let keys = Keys::default();
        keys.replace_configured(vec![Key::demo(), ci], None).unwrap();
        assert_eq!(check(&keys, "secret").unwrap(), "ci");
        assert_eq!(check(&keys, "local-demo-key").unwrap(), "demo");
        for wrong in ["", "Secret", "secret ", sha256] {
            assert_eq!(check(&keys, wrong), Err(AuthFailure::Unknown), "{wrong}");
        }
        assert_eq!(check(&keys, "guesthouse_1"), Err(AuthFailure::Malformed));
        assert_eq!(check(&keys, &"k".repeat(5000)), Err(AuthFailure::Malformed));
        let missing = keys.authenticate(None, SystemTime::now());
        assert_eq!(missing.map(drop), Err(AuthFailure::Missing));
        let counts: Vec<_> = keys.failures().counts().collect();
        assert_eq!(counts[..3], [("missing", 1), ("malformed", 2), ("unknown", 4)]);
    }

    #[test]
    fn revoked_and_expired_keys_are_rejected() {
        let keys = Keys::default();
        let now = SystemTime::now();
        let past = Timestamp::from_system_time(now - std::time::Duration::from_secs(1)).unwrap();
        let old = Key { expires: Some(past), ..key("old", "old") };
        keys.replace_configured(vec![old, key("again", "gone")], None).unwrap();
        keys.replace_stored(vec![StoredKey { revoked: Some(past), ..stored("gone", "gone") }]);
        assert_eq!(check(&keys, "old"), Err(AuthFailure::Expired));
        assert_eq!(check(&keys, "gone"), Err(AuthFailure::Revoked));
        keys.replace_stored(Vec::new());
        assert_eq!(check(&keys, "gone").unwrap(), "again");
    }

    #[test]
    fn keys_with_equal_hash_prefixes_are_distinguished() {
        let keys = Keys::default();
        keys.replace_stored(vec![stored("ann", "a")]);
        for same in [
            vec![key("ann", "b")],
            vec![key("bob", "a")],
            vec![key("bob", "b"), key("bob", "c")],
            vec![key("bob", "b"), key("eve", "b")],
        ] {
            assert!(keys.check_configured(&same).is_err(), "{same:?}");
            assert!(keys.replace_configured(same, None).is_err());
        }
        keys.replace_configured(vec![key("bob", "b")], None).unwrap();
        assert_eq!(
            (check(&keys, "a").unwrap(), check(&keys, "b").unwrap()),
            ("ann".into(), "bob".into())
        );
    }

    #[test]
    fn unrelated_changes_keep_the_rate_limit_state() {
        let keys = Keys::default();
        let rate = Rate::new(0.001, Some(1)).ok();
        let take = |secret: &str| {
            let caller = keys.authenticate(Some(secret.as_bytes()), SystemTime::now()).unwrap();
            caller.bucket().map(|bucket| bucket.take().retry_after().is_none())
        };
        keys.replace_configured(vec![key("a", "a")], rate).unwrap();
        assert_eq!((take("a"), take("a")), (Some(true), Some(false)));
        // Another key, and the same rate said in another way.
        keys.replace_stored(vec![stored("b", "b")]);
        keys.replace_configured(vec![Key { rate, ..key("a", "a") }], None).unwrap();
        assert_eq!((take("a"), take("b")), (Some(false), None));
        let other = Rate::new(0.001, Some(2)).ok();
        keys.replace_configured(vec![Key { rate: other, ..key("a", "a") }], None).unwrap();
        assert_eq!((take("a"), take("a"), take("a")), (Some(true), Some(true), Some(false)));
    }
}
