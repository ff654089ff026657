//! API keys: the host knows their SHA-256 and nothing else of them.

use sha2::{Digest as _, Sha256};

/// The key of the demonstration, which everybody knows.
const DEMO_KEY: &str = "local-demo-key";

/// The same for those who change what is served.
const DEMO_ADMIN_KEY: &str = "local-demo-admin-key";

/// A key that is allowed.
#[derive(Debug, Clone)]
pub struct KeyHash {
    name: String,
    hash: blake3::Hash,
}

impl KeyHash {
    /// A key by the SHA-256 of it in hexadecimal, or none if it is not that.
    pub fn from_hex(name: &str, sha256: &str) -> Option<Self> {
        let hash = blake3::Hash::from_hex(sha256).ok()?;
        Some(Self { name: name.to_owned(), hash })
    }

    /// The key of the demonstration.
    pub fn demo() -> Self {
        Self { name: "demo".to_owned(), hash: hash_of(DEMO_KEY.as_bytes()) }
    }

    /// The admin key of the demonstration.
    pub fn demo_admin() -> Self {
        Self { name: "demo-admin".to_owned(), hash: hash_of(DEMO_ADMIN_KEY.as_bytes()) }
    }
}

/// `blake3::Hash` is any 32 bytes that are compared in constant time; these are a SHA-256, which
/// everybody has a tool for.
fn hash_of(key: &[u8]) -> blake3::Hash {
    let digest: [u8; 32] = Sha256::digest(key).into();
    digest.into()
}

/// The keys that are allowed.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<KeyHash>);

impl Keys {
    /// These keys.
    pub fn new(keys: Vec<KeyHash>) -> Self {
        Self(keys)
    }

    /// Whether nobody is allowed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key it is, or none if it is not allowed. Takes the same time for every key.
    pub fn owner(&self, key: &[u8]) -> Option<&str> {
        let given = hash_of(key);
        let mut found = None;
        for key in &self.0 {
            if key.hash == given {
                found = Some(key.name.as_str());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_keys_are_allowed() {
        // The SHA-256 of "secret", by sha256sum.
        let sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let keys = Keys::new(vec![KeyHash::demo(), KeyHash::from_hex("ci", sha256).unwrap()]);
        let check = |key: &str| keys.owner(key.as_bytes()).map(str::to_owned);
        assert_eq!(check("secret").as_deref(), Some("ci"));
        assert_eq!(check("local-demo-key").as_deref(), Some("demo"));
        for wrong in ["", "Secret", "secret ", sha256] {
            assert_eq!(check(wrong), None, "{wrong}");
        }
        assert!(KeyHash::from_hex("x", "12").is_none());
    }
}
