//! `[[keys]]` and `[rate_limit]`: who may send requests, and how many.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConfigError, schema};
use guesthouse_control::keys::{Key, KeyName, MAX_KEYS, Scope, Scopes};
use guesthouse_control::rate::{Rate, RateError};

/// An API key, identified by its SHA-256 (`printf %s "$KEY" | sha256sum`). At most 1000, beside those
/// made with `guesthouse keys create`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeySection {
    /// The name that stands for the key in logs and in the history: letters, digits, `-`, `_`, `.` and
    /// `@`.
    #[schemars(with = "String")]
    pub name: KeyName,
    /// The SHA-256 of the key, in hexadecimal. The key must be one that nobody can guess.
    pub sha256: String,
    /// What the key is good for: `predict:MODEL`, `predict:*`, or `admin` for the admin API.
    #[schemars(with = "Option<Vec<String>>")]
    pub scopes: Option<Scopes>,
    /// When the key expires, as an RFC 3339 time in a string.
    // A date of TOML would not do, because it may lack a time zone.
    pub expires: Option<String>,
    /// How many predictions the key may request.
    #[schemars(with = "Option<schema::Rate>")]
    pub rate: Option<Rate>,
}

/// How many predictions a key may request that has no `rate` of its own.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitSection {
    /// Predictions per second in the long run, from 0.001 to 1000000.
    pub requests_per_second: Option<f64>,
    /// Predictions at once, from 1 to 1000000.
    pub burst: Option<u32>,
}

impl RateLimitSection {
    pub(super) fn validate(&self) -> Result<Option<Rate>, ConfigError> {
        let wrong = |key: &str, reason: &str| ConfigError::Value {
            key: format!("rate_limit.{key}"),
            reason: reason.to_owned(),
        };
        match (self.requests_per_second, self.burst) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(wrong("burst", "it needs `requests_per_second`")),
            (Some(per_second), burst) => {
                let rate = Rate::new(per_second, burst);
                let words = |error: RateError| error.to_string().replace("per_s", "requests_per_s");
                rate.map(Some).map_err(|error| wrong("requests_per_second", &words(error)))
            }
        }
    }
}

pub(super) fn validate(sections: Vec<KeySection>) -> Result<Vec<Key>, ConfigError> {
    if sections.len() > MAX_KEYS {
        let reason = format!("there are more than {MAX_KEYS}");
        return Err(ConfigError::Value { key: "keys".to_owned(), reason });
    }
    let keys = sections.into_iter().map(KeySection::validate).collect::<Result<Vec<_>, _>>()?;
    let probe = guesthouse_control::keys::Keys::default();
    let same = |error: guesthouse_control::keys::DuplicateKey| ConfigError::Value {
        key: "keys".to_owned(),
        reason: error.to_string(),
    };
    probe.check_configured(&keys).map_err(same)?;
    Ok(keys)
}

impl KeySection {
    fn validate(self) -> Result<Key, ConfigError> {
        let Self { name, sha256, scopes, expires, rate } = self;
        let wrong = |reason: String| ConfigError::Value { key: format!("keys, {name}"), reason };
        let expires = expires.map(|expires| expires.parse()).transpose();
        let expires = expires.map_err(|error: guesthouse_control::keys::TimestampError| {
            wrong(format!("expires: {error}"))
        })?;
        let sha256 = sha256
            .try_into()
            .map_err(|error: guesthouse_control::keys::KeyHashError| wrong(error.to_string()))?;
        let scopes = scopes.unwrap_or_else(|| Scopes::only(Scope::PredictAll));
        Ok(Key { name, sha256, scopes, expires, rate })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigFile, Settings};
    use super::*;

    fn validate(text: &str) -> Result<Settings, String> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| error.to_string())?;
        file.validate().map_err(|error| error.to_string())
    }

    fn key(name: &str, digit: char, rest: &str) -> String {
        let hash = digit.to_string().repeat(64);
        format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{hash}\"\n{rest}\n")
    }

    #[test]
    fn keys_are_for_predictions_by_default() {
        let text = key("ci", '0', "rate = { per_second = 100, burst = 200 }")
            + &key("ann", '1', "scopes = [\"admin\"]\nexpires = \"2027-01-01T00:00:00Z\"")
            + "[rate_limit]\nrequests_per_second = 2.5\n[models.m]\nrate = { per_second = 1 }";
        let settings = validate(&text).unwrap();
        let [ci, ann] = &settings.keys[..] else { panic!("two keys") };
        assert_eq!((ci.scopes.to_string(), ci.expires), ("predict:*".to_owned(), None));
        assert_eq!(ci.rate, Rate::new(100.0, Some(200)).ok());
        assert_eq!(ann.scopes.to_string(), "admin");
        assert_eq!(ann.expires.unwrap().to_string(), "2027-01-01T00:00:00Z");
        assert_eq!(settings.key_rate, Rate::new(2.5, Some(3)).ok());
        assert_eq!(settings.model_rates[&"m".parse().unwrap()], Rate::new(1.0, None).unwrap());
        assert_eq!(validate("").unwrap().key_rate, None);
    }

    #[test]
    fn invalid_keys_and_rates_are_rejected() {
        for bad in [
            key("a b", '0', ""),
            key("a", 'g', ""),
            key("a", '0', "scopes = []"),
            key("a", '0', "scopes = [\"predict\"]"),
            key("a", '0', "expires = \"2027-01-01\""),
            key("a", '0', "expires = 2027-01-01T00:00:00Z"),
            key("a", '0', "rate = { per_second = 0 }"),
            key("a", '0', "rate = { burst = 1 }"),
            key("a", '0', "rate = { per_second = 1, bursts = 1 }"),
            key("a", '0', "") + &key("a", '1', ""),
            key("a", '0', "") + &key("b", '0', ""),
            "[rate_limit]\nburst = 1".to_owned(),
            "[rate_limit]\nrequests_per_second = 0".to_owned(),
            "[rate_limit]\nrequests_per_second = 1\nburst = 0".to_owned(),
            "[models.m]\nrate = { per_second = -1 }".to_owned(),
            "[[admin_keys]]\nname = \"a\"\nsha256 = \"\"".to_owned(),
        ] {
            assert!(validate(&bad).is_err(), "{bad}");
        }
    }
}
