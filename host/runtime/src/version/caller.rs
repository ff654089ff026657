//! Who sends a request, as far as the health of a version is concerned.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::LazyLock;

/// Keyed at random, so that nobody can choose to be taken for somebody else.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Tells callers apart without keeping their names: by the API key, and by the sticky key where one
/// tells several callers behind one API key apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerId {
    key: u64,
    sticky: Option<u64>,
}

impl CallerId {
    /// The holder of the API key with this name, and the value of the sticky key, if there is one.
    pub fn new(key: &str, sticky: Option<&[u8]>) -> Self {
        Self { key: HASHER.hash_one(key), sticky: sticky.map(|sticky| HASHER.hash_one(sticky)) }
    }

    /// Stands for the API key.
    pub(super) fn key(self) -> u64 {
        self.key
    }

    /// Stands for the caller among those with the same API key.
    pub(super) fn member(self) -> u64 {
        self.sticky.unwrap_or_default()
    }
}
