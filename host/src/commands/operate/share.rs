//! Shares of the requests: exact to a part per million, as the server counts them.

use std::fmt;
use std::str::FromStr;

use guesthouse::rollout::WHOLE;
use serde::{Deserialize, Serialize};

/// Parts per million in one percent.
const PERCENT: u32 = WHOLE / 100;

/// The decimals that a percentage can have and still be whole parts per million.
const DECIMALS: usize = 4;

/// A share of the requests, from nothing to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Share(u32);

impl Share {
    /// All requests.
    pub(super) const ALL: Self = Self(WHOLE);

    /// What the others leave.
    pub(super) fn rest(others: impl Iterator<Item = Self>) -> Self {
        Self(others.fold(WHOLE, |rest, Self(share)| rest.saturating_sub(share)))
    }
}

/// A text is not a [`Share`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ShareError {
    /// It is no number of the two forms.
    #[error(
        "a share is a percentage such as `10%` or `0.5%`, or parts per million such as `100000`"
    )]
    Malformed,
    /// It has more decimals than the server counts.
    #[error("a share is exact to 0.0001%, which is one part per million")]
    TooFine,
    /// It is over 100%.
    #[error("a share is at most 100%, which is 1000000 parts per million")]
    TooLarge,
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let share = match text.strip_suffix('%') {
            Some(percent) => percentage(percent.trim_end())?,
            None => number(text)?,
        };
        if share <= u64::from(WHOLE) {
            u32::try_from(share).map(Self).map_err(|_too_large| ShareError::TooLarge)
        } else {
            Err(ShareError::TooLarge)
        }
    }
}

/// Parts per million, in integers all the way.
fn percentage(text: &str) -> Result<u64, ShareError> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let significant = decimals.trim_end_matches('0');
    // Zeros at the end mean nothing, but what stands there has to be a number all the same.
    number(whole).and(digits(decimals))?;
    if significant.len() > DECIMALS {
        return Err(ShareError::TooFine);
    }
    let parts = number(&format!("{significant:0<DECIMALS$}"))?;
    let whole = number(whole)?.checked_mul(u64::from(PERCENT));
    whole.and_then(|whole| whole.checked_add(parts)).ok_or(ShareError::TooLarge)
}

fn number(text: &str) -> Result<u64, ShareError> {
    digits(text)?;
    text.parse().map_err(|_too_large| ShareError::TooLarge)
}

/// The standard library's numbers may have a sign, too.
fn digits(text: &str) -> Result<(), ShareError> {
    let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if good { Ok(()) } else { Err(ShareError::Malformed) }
}

/// As a percentage, with the decimals that it has.
impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, parts) = (self.0 / PERCENT, self.0 % PERCENT);
        let decimals = format!(".{parts:0DECIMALS$}");
        let decimals = decimals.trim_end_matches('0').trim_end_matches('.');
        write!(formatter, "{percent}{decimals} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact() {
        let good = [
            ("0", 0, "0 %"),
            ("0%", 0, "0 %"),
            ("1", 1, "0.0001 %"),
            ("0.0001%", 1, "0.0001 %"),
            ("0.00010%", 1, "0.0001 %"),
            ("0.5%", 5_000, "0.5 %"),
            ("10%", 100_000, "10 %"),
            ("10 %", 100_000, "10 %"),
            ("010.0%", 100_000, "10 %"),
            ("100000", 100_000, "10 %"),
            // No number with a binary point is 0.29; times a million, it ends below 290000.
            ("29.0001%", 290_001, "29.0001 %"),
            ("99.9999%", 999_999, "99.9999 %"),
            ("100%", 1_000_000, "100 %"),
            ("1000000", 1_000_000, "100 %"),
        ];
        for (text, parts, shown) in good {
            let share: Share = text.parse().unwrap();
            assert_eq!((share, share.to_string().as_str()), (Share(parts), shown), "{text}");
        }
    }

    #[test]
    fn every_share_is_read_back_as_it_is_shown() {
        for parts in (0..=WHOLE).step_by(7) {
            let share = Share(parts);
            assert_eq!(share.to_string().parse(), Ok(share));
        }
    }

    #[test]
    fn what_is_no_share_is_refused() {
        use ShareError::{Malformed, TooFine, TooLarge};
        let huge = "9".repeat(40);
        let bad = [
            ("", Malformed),
            ("%", Malformed),
            ("-1", Malformed),
            ("-5%", Malformed),
            ("+5%", Malformed),
            ("5.%", Malformed),
            (".5%", Malformed),
            ("0.5", Malformed),
            ("1e1%", Malformed),
            ("1.2.3%", Malformed),
            ("1.0000x%", Malformed),
            ("10%%", Malformed),
            ("ten", Malformed),
            ("٣%", Malformed),
            ("0.00001%", TooFine),
            ("0.12345%", TooFine),
            ("100.0001%", TooLarge),
            ("101%", TooLarge),
            ("1000001", TooLarge),
            (huge.as_str(), TooLarge),
        ];
        for (text, error) in bad {
            assert_eq!(text.parse::<Share>(), Err(error), "{text}");
        }
    }

    #[test]
    fn stable_gets_what_is_left() {
        assert_eq!(Share::rest([Share(100_000), Share(1)].into_iter()), Share(899_999));
        assert_eq!(Share::rest([Share::ALL, Share(1)].into_iter()), Share(0));
    }
}
