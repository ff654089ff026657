//! Targets for texts: the configuration, names, request heads, and the JSON in the state folder.

use std::path::Path;
use std::time::{Duration, Instant};

use semver::Version;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{ConfigFile, Override};
use crate::edge::fuzzing as edge;
use guesthouse_artifact::Digest;
use guesthouse_control::keys::{Scope, StoredKey, Timestamp};
use guesthouse_control::ledger::{self, Entry};
use guesthouse_control::rate::Bucket;
use guesthouse_control::rollout::ModelState;
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::preinit::{PreinitError, PreinitReport};

/// The prefix of lines that become overrides of the configuration.
const BESIDE: &str = "#set ";

/// Parse and validate a configuration file with overrides.
pub(super) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let beside = text.lines().filter_map(|line| line.strip_prefix(BESIDE)).take(8);
    let Ok(overrides) = beside.map(Override::from_argument).collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let settle = || ConfigFile::parse(text, Path::new(""), &overrides).ok()?.validate().ok();
    let Some(settings) = settle() else { return };
    assert_eq!(format!("{:?}", Some(&settings)), format!("{:?}", settle().as_ref()));
    let limits = &settings.limits;
    let intervals = limits.repository_interval.into_iter().chain([limits.traffic_log_interval]);
    let general = [
        limits.body_time,
        limits.head_time,
        limits.max_predict_time,
        limits.linger_time,
        limits.drain_time,
        limits.model.predict_time,
        limits.preinit.wall_time,
        settings.answers.time,
    ];
    let of_models = settings.models.values().map(|model| model.predict_time);
    for time in general.into_iter().chain(intervals).chain(of_models) {
        assert!(can_be_waited_for(time), "{time:?} is after the end of time");
    }
    assert!(limits.bodies_in_flight_bytes >= limits.body_bytes);
    let of_keys = settings.keys.iter().filter_map(|key| key.rate);
    for rate in of_keys.chain(settings.key_rate).chain(settings.model_rates.into_values()) {
        let bucket = Bucket::new(rate);
        assert!(bucket.take().retry_after().is_none(), "the first request is not refused");
    }
    for split in settings.splits.values() {
        assert_eq!(split.values().map(|weight| u64::from(*weight)).sum::<u64>(), 1_000_000);
    }
}

/// Whether the duration can be added to the current time.
fn can_be_waited_for(time: Duration) -> bool {
    Instant::now().checked_add(time).is_some()
}

/// The longest selector, in bytes: a normalised one may be longer than the original.
const LONGEST: usize = 256;

/// Parse names of models, selectors, digests, scopes and queries.
pub(super) fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    edge::texts(text);
    if let Ok(name) = text.parse::<ModelName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(digest) = Digest::try_from(text.to_owned()) {
        assert_eq!(Digest::try_from(digest.to_string()), Ok(digest));
    }
    let scopes = text.parse::<Scope>().map(|scope| scope.to_string());
    assert!(scopes.is_err() || scopes.as_deref() == Ok(text));
    if let Ok(time) = text.parse::<Timestamp>() {
        assert_eq!(time.to_string().parse(), Ok(time));
    }
    let Ok(selector) = text.parse::<Selector>() else { return };
    let versions = [Version::new(0, 0, 0), Version::new(1, 2, 3), Version::new(1, u64::MAX, 0)];
    match &selector {
        Selector::Default => panic!("no text parses as the default selector"),
        Selector::Exact(version) => {
            assert!(selector.matches(version));
            for written in [version.to_string(), format!("={version}")] {
                let again = written.parse::<Selector>().ok();
                assert!(again.as_ref() == Some(&selector) || written.len() > LONGEST);
            }
        }
        Selector::Channel(_) => {
            assert!(!versions.iter().any(|version| selector.matches(version)));
        }
        Selector::Range(range) => {
            let written = range.to_string();
            let Ok(written) = written.parse::<Selector>() else {
                assert!(written.len() > LONGEST, "a range can be read again: {written}");
                return;
            };
            for version in &versions {
                assert_eq!(selector.matches(version), written.matches(version), "{range}");
            }
        }
    }
}

/// Read a request head and a body.
pub(super) fn request(bytes: &[u8]) {
    edge::request(bytes);
}

/// Read the JSON of the ledger and the store, and the report of a child.
pub(super) fn state(bytes: &[u8]) {
    let entries: Option<Vec<Entry>> =
        bytes.split(|byte| *byte == b'\n').take(64).map(written_as_read::<Entry>).collect();
    if let Some(entries) = entries {
        let is_whole = ledger::check_chain(&entries).is_ok();
        let altered: Vec<_> = entries
            .iter()
            .map(|entry| Entry { revision: entry.revision ^ 1, ..entry.clone() })
            .collect();
        assert!(!is_whole || ledger::check_chain(&altered).is_err(), "a change is noticed");
    }
    written_as_read::<ModelState>(bytes);
    written_as_read::<StoredKey>(bytes);
    written_as_read::<Result<PreinitReport, PreinitError>>(bytes);
}

/// Parse a value and check that it round-trips.
fn written_as_read<T: Serialize + DeserializeOwned>(json: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(json).ok()?;
    let text = serde_json::to_string(&value).expect("what was read can be written");
    let again: T = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(serde_json::to_string(&again).ok(), Some(text));
    Some(value)
}
