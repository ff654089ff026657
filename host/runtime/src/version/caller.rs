//! The identity of a caller, as far as a version's breaker distinguishes callers.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::LazyLock;

/// Randomly keyed, so that nobody can construct a collision with another caller.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Identifies a caller without storing its name: a hash of the name of the API key and, if the
/// request has one, of the sticky key, which distinguishes callers that share an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerId {
    key: u64,
    sticky: Option<u64>,
}

impl CallerId {
    /// The caller with this name of an API key and this sticky key.
    pub fn new(key: &str, sticky: Option<&[u8]>) -> Self {
        Self { key: HASHER.hash_one(key), sticky: sticky.map(|sticky| HASHER.hash_one(sticky)) }
    }

    /// The hash of the API key's name.
    pub(super) fn key(self) -> u64 {
        self.key
    }

    /// The hash of the sticky key; 0 without one.
    pub(super) fn member(self) -> u64 {
        self.sticky.unwrap_or_default()
    }
}
