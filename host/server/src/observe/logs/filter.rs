//! The syntax of log filters: levels, and levels by target.
//!
//! Filters can be set over the network while the server runs, so they have no regular expressions,
//! spans or fields: matching compares prefixes. A mistyped level must not be taken for a target,
//! because a filter that only names targets turns all other lines off.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::is_ours;

/// The longest filter, in bytes: levels for some dozens of targets.
const MAX_FILTER_LENGTH: usize = 1024;

/// The levels, from the fewest lines to the most.
const LEVELS: &str = "`off`, `error`, `warn`, `info`, `debug` and `trace`";

/// An invalid filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The filter is empty.
    #[error("it is empty: the levels are {LEVELS}")]
    Empty,
    /// A word without `=` is neither a level nor one of this program's targets.
    #[error("`{0}` is neither a level nor a target: the levels are {LEVELS}")]
    UnknownWord(String),
    /// What follows `=` is not a level.
    #[error("`{0}` is not a level: the levels are {LEVELS}")]
    UnknownLevel(String),
    /// What precedes `=` is not the path of a module.
    #[error(
        "`{0}` is not a target: a filter is a list such as `info,request=warn`, without regular \
         expressions, spans or fields"
    )]
    MalformedTarget(String),
    /// The filter sets no level for this program's own lines, so it would turn them off.
    #[error("it would turn the log off: begin it with a level, such as `info`, or say `off`")]
    NothingOfOurs,
    /// The filter is too long.
    #[error("it is over {MAX_FILTER_LENGTH} bytes")]
    TooLong,
    /// The log is not initialised.
    #[error("there is no log")]
    NoLog,
}

/// Parse a list of `level`, `target=level` and `target`, separated by commas.
///
/// A target of this program without a level is logged at `trace`. Targets of libraries are accepted
/// with a level, and match modules below them. A later level overrides an earlier one.
pub(super) fn parse(text: &str) -> Result<Targets, FilterError> {
    if text.len() > MAX_FILTER_LENGTH {
        return Err(FilterError::TooLong);
    }
    let (mut targets, mut has_own_target, mut is_empty) = (Targets::new(), false, true);
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        is_empty = false;
        if let Some((target, word)) = directive.split_once('=') {
            let (target, word) = (target.trim_end(), word.trim_start());
            if !is_path(target) {
                return Err(FilterError::MalformedTarget(target.to_owned()));
            }
            let level = level(word).ok_or_else(|| FilterError::UnknownLevel(word.to_owned()))?;
            has_own_target |= is_ours(target);
            targets = targets.with_target(target, level);
        } else if let Some(level) = level(directive) {
            has_own_target = true;
            targets = targets.with_default(level);
        } else if is_path(directive) && is_ours(directive) {
            has_own_target = true;
            targets = targets.with_target(directive, LevelFilter::TRACE);
        } else {
            return Err(FilterError::UnknownWord(directive.to_owned()));
        }
    }
    match (is_empty, has_own_target) {
        (true, _) => Err(FilterError::Empty),
        (false, false) => Err(FilterError::NothingOfOurs),
        (false, true) => Ok(targets),
    }
}

/// A level by its name, in any case, or by its number from 0 (`off`) to 5 (`trace`).
fn level(word: &str) -> Option<LevelFilter> {
    // The library takes an empty word for `error`.
    if word.is_empty() { None } else { word.parse().ok() }
}

/// Whether it can be the path of a Rust module: words with `::` between them.
fn is_path(text: &str) -> bool {
    text.split("::").all(|word| {
        let mut letters = word.chars();
        letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_apply_to_targets_and_modules_below_them() {
        let is_logged = |filter: &str, target: &str, level: Level| {
            parse(filter).unwrap().would_enable(target, &level)
        };
        for (filter, target, level, is_enabled) in [
            ("info", "request", Level::INFO, true),
            ("info", "request", Level::DEBUG, false),
            ("INFO", "request", Level::INFO, true),
            ("3", "request", Level::INFO, true),
            ("off", "request", Level::ERROR, false),
            ("info,request=warn", "request", Level::INFO, false),
            ("info,request=warn", "guest", Level::INFO, true),
            (" info , request = warn , ", "request", Level::INFO, false),
            ("info,guesthouse::edge=debug", "guesthouse::edge::tls", Level::DEBUG, true),
            ("warn,request", "request", Level::TRACE, true),
            ("request=info", "request", Level::INFO, true),
            ("request=info", "guest", Level::ERROR, false),
            ("info,hyper=warn,h2=off", "request", Level::INFO, true),
            ("info,warn", "request", Level::INFO, false),
        ] {
            assert_eq!(is_logged(filter, target, level), is_enabled, "{filter} {target} {level}");
        }
    }

    #[test]
    fn mistyped_filters_are_rejected() {
        let word = |word: &str| FilterError::UnknownWord(word.to_owned());
        let target = |target: &str| FilterError::MalformedTarget(target.to_owned());
        let level = |level: &str| FilterError::UnknownLevel(level.to_owned());
        for (filter, error) in [
            ("", FilterError::Empty),
            (" , ,", FilterError::Empty),
            ("inof", word("inof")),
            ("inof,request=warn", word("inof")),
            ("info,hyper", word("hyper")),
            ("info;request=warn", target("info;request")),
            ("info request=warn", target("info request")),
            ("6", word("6")),
            ("-1", word("-1")),
            ("request=loud", level("loud")),
            ("request=", level("")),
            ("=info", target("")),
            ("request=info=warn", level("info=warn")),
            ("requests=info", FilterError::NothingOfOurs),
            ("hyper=info,h2=info", FilterError::NothingOfOurs),
            ("[{request_id=~\"a{99}\"}]=info", target("[{request_id")),
            ("info,[predict]=trace", target("[predict]")),
            ("guesthouse[predict]", word("guesthouse[predict]")),
            ("request[{status}]=info", target("request[{status}]")),
            ("info,guesthouse::=debug", target("guesthouse::")),
        ] {
            assert_eq!(parse(filter).err(), Some(error), "{filter}");
        }
        assert_eq!(parse(&"info,".repeat(300)).err(), Some(FilterError::TooLong));
    }

    proptest! {
        #[test]
        fn accepted_filters_log_own_lines_or_contain_off(
            filter in "(([a-z]{1,5}|info|off|request|hyper)(=(info|off|[a-z]{1,4}))?,?){1,3}"
        ) {
            if let Ok(targets) = parse(&filter) {
                let ours = ["guesthouse", "request", "fault", "guest", "traffic", "change"];
                let logs = ours.iter().any(|target| targets.would_enable(target, &Level::ERROR));
                prop_assert!(logs || filter.contains("off"), "{}", filter);
            }
        }
    }
}
