//! The key by which a server recognises a retried change.

use std::fmt;
use std::str::FromStr;

use guesthouse_runtime::clock;

/// The longest idempotency key that the server accepts.
const MAX_IDEMPOTENCY_KEY_LENGTH: usize = 128;

/// Identifies a change to the server across retries: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdempotencyKey(String);

/// A string is not an [`IdempotencyKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key is 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} visible ASCII characters")]
pub(super) struct IdempotencyKeyError;

impl IdempotencyKey {
    /// A new key.
    pub(super) fn random() -> Self {
        Self(clock::new_id().to_string())
    }
}

impl FromStr for IdempotencyKey {
    type Err = IdempotencyKeyError;

    fn from_str(text: &str) -> Result<Self, IdempotencyKeyError> {
        let is_valid = (1..=MAX_IDEMPOTENCY_KEY_LENGTH).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_valid { Ok(Self(text.to_owned())) } else { Err(IdempotencyKeyError) }
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_are_visible_ascii() {
        let long = "k".repeat(MAX_IDEMPOTENCY_KEY_LENGTH);
        for good in ["a", "deploy-1.2.3/41", long.as_str()] {
            assert_eq!(good.parse::<IdempotencyKey>().unwrap().to_string(), good);
        }
        let longer = format!("{long}k");
        for bad in ["", "a b", "a\n", "é", longer.as_str()] {
            assert_eq!(bad.parse::<IdempotencyKey>(), Err(IdempotencyKeyError), "{bad}");
        }
        let random = IdempotencyKey::random();
        assert_eq!(random.to_string().parse(), Ok(random.clone()));
        assert_ne!(random, IdempotencyKey::random());
    }
}
