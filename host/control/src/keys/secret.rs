//! Generating keys: 256 random bits of the operating system in base 62, and six check digits that
//! distinguish a mistyped or truncated key from an unknown one.

use rand::TryRng as _;
pub use rand::rngs::SysError as RandomnessError;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};

/// The prefix of every generated key, by which secret scanners find keys in code and logs.
pub const PREFIX: &str = "guesthouse_";

/// 62^43 is the first power of 62 over 2^256.
const RANDOM_DIGITS: usize = 43;

/// 62^6 is the first power of 62 over 2^32.
const CHECK_DIGITS: usize = 6;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Generate a key. It is stored nowhere; the caller that made it sees it once.
///
/// # Errors
/// The operating system provides no randomness.
pub fn generate() -> Result<String, RandomnessError> {
    let mut random = [0; 32];
    SysRng.try_fill_bytes(&mut random)?;
    Ok(key_from_bytes(random))
}

fn key_from_bytes(random: [u8; 32]) -> String {
    let body = format!("{PREFIX}{}", base62::<RANDOM_DIGITS>(&random));
    let check = check_digits(&body);
    body + &check
}

/// Whether a key has our prefix but cannot be one of ours, because it is mistyped or truncated.
pub(super) fn is_malformed(key: &[u8]) -> bool {
    if !key.starts_with(PREFIX.as_bytes()) {
        // The operator has generated it with another tool.
        return false;
    }
    let Some((body, check)) = key.split_last_chunk::<CHECK_DIGITS>() else { return true };
    let good = std::str::from_utf8(body).is_ok_and(|body| check_digits(body).as_bytes() == check);
    !good || key.len() != PREFIX.len() + RANDOM_DIGITS + CHECK_DIGITS
}

/// The first 32 bits of the SHA-256 in base 62.
fn check_digits(body: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(body).into();
    base62::<CHECK_DIGITS>(&digest[..4])
}

/// A number in base 62 with `COUNT` digits, the most significant first.
fn base62<const COUNT: usize>(number: &[u8]) -> String {
    let mut number = number.to_vec();
    let mut digits = [b'0'; COUNT];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest * 256 + usize::from(*byte);
            *byte = u8::try_from(value / 62).expect("the rest is below 62");
            rest = value % 62;
        }
        *digit = DIGITS[rest];
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_are_unique_and_recognisable() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        for key in [&one, &other] {
            assert_eq!(key.len(), PREFIX.len() + RANDOM_DIGITS + CHECK_DIGITS, "{key}");
            assert!(key.starts_with("guesthouse_"));
            assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
            assert!(!is_malformed(key.as_bytes()));
        }
    }

    #[test]
    fn keys_encode_all_leading_zeros() {
        // Python: divmod of the integer by 62, again and again.
        assert_eq!(base62::<6>(&[255; 4]), "4gfFC3");
        assert_eq!(base62::<3>(&[1, 0]), "048");
        assert_eq!(base62::<RANDOM_DIGITS>(&[0; 32]), "0".repeat(43));
        let most = base62::<RANDOM_DIGITS>(&[255; 32]);
        let least = base62::<RANDOM_DIGITS>(&{
            let mut number = [255; 32];
            number[31] = 254;
            number
        });
        assert!(least < most, "{least} {most}");
    }

    #[test]
    fn a_mistyped_key_is_detected() {
        let key = key_from_bytes([7; 32]);
        assert!(!is_malformed(b"a key of the operator's own"));
        assert!(is_malformed(b"guesthouse_"));
        assert!(is_malformed(&key.as_bytes()[..key.len() - 1]));
        assert!(is_malformed(format!("{key}0").as_bytes()));
        for at in PREFIX.len()..key.len() {
            let mut wrong = key.clone().into_bytes();
            wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
            assert!(is_malformed(&wrong), "at {at}");
        }
    }
}
