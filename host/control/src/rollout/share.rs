//! Shares of the requests, exact to one part per million and written with a unit.
//!
//! A text without a unit is ambiguous, because many tools count in percent. It is refused, and the error
//! shows its possible meanings. Integers in JSON and TOML are parts per million.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::state::WHOLE;

/// Parts per million in one percent.
const PERCENT: u32 = WHOLE / 100;

/// The most decimals of a percentage that is a whole number of parts per million.
const PERCENT_DECIMALS: usize = 4;

/// The most decimals of a fraction that is a whole number of parts per million.
const FRACTION_DECIMALS: usize = 6;

/// A share of the requests in parts per million. One that is parsed from a text is at most [`WHOLE`]. An
/// integer of JSON or TOML is taken as it is; the rollout rules check the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Share(u32);

impl Share {
    /// All requests.
    pub const ALL: Self = Self(WHOLE);

    /// A share of this many parts per million, without a check.
    pub fn from_parts(parts: u32) -> Self {
        Self(parts)
    }

    /// The share in parts per million.
    pub fn parts(self) -> u32 {
        self.0
    }

    /// What remains of [`WHOLE`] after these shares.
    pub fn remainder(others: impl Iterator<Item = Self>) -> Self {
        Self(others.fold(WHOLE, |rest, Self(share)| rest.saturating_sub(share)))
    }
}

/// Why a text is not a [`Share`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// It is not a number with a unit.
    #[error(
        "a share is a percentage such as `10%`, parts per million such as `100000ppm`, or a fraction such as `0.1`"
    )]
    Malformed,
    /// It is a number that could be a percentage or parts per million.
    #[error("`{text}` has no unit: write {readings}")]
    NoUnit {
        /// The text.
        text: String,
        /// Its possible meanings, each with a unit.
        readings: String,
    },
    /// It is finer than one part per million.
    #[error("a share is exact to 0.0001%, which is one part per million")]
    TooFine,
    /// It is over 100%.
    #[error("a share is at most 100%, which is 1000000 parts per million")]
    TooLarge,
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let parts = if let Some(percent) = text.strip_suffix('%') {
            decimal(percent.trim_end(), PERCENT, PERCENT_DECIMALS)?
        } else if let Some(parts) = text.strip_suffix("ppm") {
            number(parts.trim_end())?
        } else {
            fraction(text)?
        };
        match u32::try_from(parts) {
            Ok(parts) if parts <= WHOLE => Ok(Self(parts)),
            _ => Err(ShareError::TooLarge),
        }
    }
}

/// Parse a text without a unit: 0, or a fraction of at most 1 with a decimal point.
fn fraction(text: &str) -> Result<u64, ShareError> {
    match text.split_once('.') {
        None if number(text)? == 0 => Ok(0),
        None => Err(without_unit(text)),
        Some((whole, _)) => match decimal(text, WHOLE, FRACTION_DECIMALS) {
            Ok(parts) if parts <= u64::from(WHOLE) => Ok(parts),
            Err(ShareError::Malformed) => Err(ShareError::Malformed),
            Err(error) if number(whole)? == 0 => Err(error),
            _ => Err(without_unit(text)),
        },
    }
}

/// The error that shows what a number means with each unit; [`ShareError::TooLarge`] if it is too large with
/// every unit.
fn without_unit(text: &str) -> ShareError {
    let with = |unit: &str| {
        let written = format!("{text}{unit}");
        written.parse::<Share>().ok().map(|share| (written, share))
    };
    let mut readings = Vec::new();
    readings.extend(with("%").map(|(written, _)| format!("`{written}`")));
    readings.extend(with(".0").map(|(written, share)| format!("`{written}` for {share}")));
    readings.extend(with("ppm").map(|(written, share)| format!("`{written}` for {share}")));
    if readings.is_empty() {
        return ShareError::TooLarge;
    }
    ShareError::NoUnit { text: text.to_owned(), readings: readings.join(" or ") }
}

/// The parts per million of a decimal number of units, computed with integers only.
fn decimal(text: &str, unit: u32, most_decimals: usize) -> Result<u64, ShareError> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let significant = decimals.trim_end_matches('0');
    // Trailing zeros are ignored, but all of the text must be digits.
    number(whole).and(digits(decimals))?;
    if significant.len() > most_decimals {
        return Err(ShareError::TooFine);
    }
    let parts = number(&format!("{significant:0<most_decimals$}"))?;
    let whole = number(whole)?.checked_mul(u64::from(unit));
    whole.and_then(|whole| whole.checked_add(parts)).ok_or(ShareError::TooLarge)
}

fn number(text: &str) -> Result<u64, ShareError> {
    digits(text)?;
    text.parse().map_err(|_too_large| ShareError::TooLarge)
}

/// Check that the text is digits only. The standard library would also accept a sign.
fn digits(text: &str) -> Result<(), ShareError> {
    let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if good { Ok(()) } else { Err(ShareError::Malformed) }
}

/// Formats the share as a percentage with as many decimals as needed.
impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, parts) = (self.0 / PERCENT, self.0 % PERCENT);
        let decimals = format!(".{parts:0PERCENT_DECIMALS$}");
        let decimals = decimals.trim_end_matches('0').trim_end_matches('.');
        write!(formatter, "{percent}{decimals} %")
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShareVisitor)
    }
}

struct ShareVisitor;

impl Visitor<'_> for ShareVisitor {
    type Value = Share;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("parts per million as an integer, or a text such as \"10%\"")
    }

    fn visit_u64<E: de::Error>(self, parts: u64) -> Result<Share, E> {
        let too_large = |_error| E::custom(ShareError::TooLarge);
        u32::try_from(parts).map(Share).map_err(too_large)
    }

    fn visit_i64<E: de::Error>(self, parts: i64) -> Result<Share, E> {
        let negative = |_error| E::invalid_value(de::Unexpected::Signed(parts), &self);
        u64::try_from(parts).map_err(negative).and_then(|parts| self.visit_u64(parts))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Share, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_parsed_exactly() {
        let good = [
            ("0", 0, "0 %"),
            ("0%", 0, "0 %"),
            ("0ppm", 0, "0 %"),
            ("1ppm", 1, "0.0001 %"),
            ("0.0001%", 1, "0.0001 %"),
            ("0.00010%", 1, "0.0001 %"),
            ("0.000001", 1, "0.0001 %"),
            ("0.5%", 5_000, "0.5 %"),
            ("10%", 100_000, "10 %"),
            ("10 %", 100_000, "10 %"),
            ("0.1", 100_000, "10 %"),
            ("010.0%", 100_000, "10 %"),
            ("100000ppm", 100_000, "10 %"),
            ("100000 ppm", 100_000, "10 %"),
            // No number with a binary point is 0.29; times a million, it ends below 290000.
            ("29.0001%", 290_001, "29.0001 %"),
            ("0.290001", 290_001, "29.0001 %"),
            ("99.9999%", 999_999, "99.9999 %"),
            ("100%", 1_000_000, "100 %"),
            ("1.0", 1_000_000, "100 %"),
            ("1000000ppm", 1_000_000, "100 %"),
        ];
        for (text, parts, shown) in good {
            let share: Share = text.parse().unwrap();
            assert_eq!((share, share.to_string().as_str()), (Share(parts), shown), "{text}");
        }
    }

    #[test]
    fn numbers_without_a_unit_are_refused_with_their_meanings() {
        assert_eq!("1.000001".parse::<Share>(), Err(ShareError::TooLarge), "finer than percents");
        for (text, wanted) in [
            ("1", "`1%` or `1.0` for 100 % or `1ppm` for 0.0001 %"),
            ("10", "`10%` or `10ppm` for 0.001 %"),
            ("100", "`100%` or `100ppm` for 0.01 %"),
            ("100000", "`100000ppm` for 10 %"),
            ("1000000", "`1000000ppm` for 100 %"),
            ("10.5", "`10.5%`"),
        ] {
            let error = text.parse::<Share>().unwrap_err();
            let (text, readings) = (text.to_owned(), wanted.to_owned());
            assert_eq!(error, ShareError::NoUnit { text, readings });
        }
    }

    #[test]
    fn integers_of_documents_are_parts_per_million() {
        let json = |text: &str| serde_json::from_str::<Share>(text).ok();
        assert_eq!(json("10"), Some(Share(10)));
        assert_eq!(json("\"10%\""), Some(Share(100_000)));
        assert_eq!(json("\"0.1\""), Some(Share(100_000)));
        assert_eq!(serde_json::to_string(&Share(10)).unwrap(), "10");
        for bad in ["0.1", "1.0", "-1", "4294967296", "\"10\"", "\"1\"", "\"101%\"", "null", "[]"] {
            assert_eq!(json(bad), None, "{bad}");
        }
        let toml: toml::Table = "a = 10\nb = \"10%\"\nc = -1\nd = 0.1".parse().unwrap();
        let toml = |key: &str| toml[key].clone().try_into::<Share>().ok();
        assert_eq!((toml("a"), toml("b")), (Some(Share(10)), Some(Share(100_000))));
        assert_eq!((toml("c"), toml("d")), (None, None));
    }

    #[test]
    fn shares_round_trip_through_their_text() {
        for parts in (0..=WHOLE).step_by(7) {
            let share = Share(parts);
            assert_eq!(share.to_string().parse(), Ok(share));
        }
    }

    #[test]
    fn texts_that_are_no_share_are_refused() {
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
            ("ppm", Malformed),
            ("1.5ppm", Malformed),
            (".5", Malformed),
            ("5.", Malformed),
            ("1e-1", Malformed),
            ("0,1", Malformed),
            ("10 percent", Malformed),
            ("1e1%", Malformed),
            ("1.2.3%", Malformed),
            ("1.0000x%", Malformed),
            ("10%%", Malformed),
            ("ten", Malformed),
            ("٣%", Malformed),
            ("0.00001%", TooFine),
            ("0.12345%", TooFine),
            ("0.0000001", TooFine),
            ("100.0001%", TooLarge),
            ("101%", TooLarge),
            ("1000001", TooLarge),
            ("1000001ppm", TooLarge),
            (huge.as_str(), TooLarge),
        ];
        for (text, error) in bad {
            assert_eq!(text.parse::<Share>(), Err(error), "{text}");
        }
    }

    #[test]
    fn the_remainder_is_what_other_shares_leave() {
        assert_eq!(Share::remainder([Share(100_000), Share(1)].into_iter()), Share(899_999));
        assert_eq!(Share::remainder([Share::ALL, Share(1)].into_iter()), Share(0));
    }
}
