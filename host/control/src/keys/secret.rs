//! Making a key: 256 bits of the operating system's randomness, in letters and digits, and six more of
//! them by which a mistyped or cut key is told from one that is not known.

use rand::TryRng as _;
pub use rand::rngs::SysError as RandomnessError;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};

/// What every key of ours begins with, so that scanners for secrets find it in code and logs.
pub const PREFIX: &str = "guesthouse_";

/// 62^43 is the first power of 62 over 2^256.
const RANDOM_DIGITS: usize = 43;

/// 62^6 is the first power of 62 over 2^32.
const CHECK_DIGITS: usize = 6;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A new key that nobody can guess. It is written nowhere: whoever asked for it is told once.
///
/// # Errors
/// The operating system has no randomness to give.
pub fn generate() -> Result<String, RandomnessError> {
    let mut random = [0; 32];
    SysRng.try_fill_bytes(&mut random)?;
    Ok(of_bytes(random))
}

fn of_bytes(random: [u8; 32]) -> String {
    let body = format!("{PREFIX}{}", base62::<RANDOM_DIGITS>(&random));
    let check = check_digits(&body);
    body + &check
}

/// Whether a key claims to be one of ours and cannot be: a letter is wrong, or a part is missing.
pub(super) fn is_mutilated(key: &[u8]) -> bool {
    if !key.starts_with(PREFIX.as_bytes()) {
        // The operator has made it in another way.
        return false;
    }
    let Some((body, check)) = key.split_last_chunk::<CHECK_DIGITS>() else { return true };
    let good = std::str::from_utf8(body).is_ok_and(|body| check_digits(body).as_bytes() == check);
    !good || key.len() != PREFIX.len() + RANDOM_DIGITS + CHECK_DIGITS
}

/// The first 32 bits of the SHA-256.
fn check_digits(body: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(body).into();
    base62::<CHECK_DIGITS>(&digest[..4])
}

/// A number of so many digits, the largest first.
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
            assert!(!is_mutilated(key.as_bytes()));
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
    fn the_checksum_detects_a_mistyped_key() {
        let key = of_bytes([7; 32]);
        assert!(!is_mutilated(b"a key of the operator's own"));
        assert!(is_mutilated(b"guesthouse_"));
        assert!(is_mutilated(&key.as_bytes()[..key.len() - 1]));
        assert!(is_mutilated(format!("{key}0").as_bytes()));
        for at in PREFIX.len()..key.len() {
            let mut wrong = key.clone().into_bytes();
            wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
            assert!(is_mutilated(&wrong), "at {at}");
        }
    }
}
