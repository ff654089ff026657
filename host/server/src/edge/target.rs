//! The model and the version that a path, a header or a message names.

use super::error::{ApiError, ErrorCode};
use guesthouse_control::registry::Snapshot;
use guesthouse_control::router::RouteError;
use guesthouse_model::{Channel, ModelName, Selector};

/// The model and the version that a request asks for, or why it asks for nothing.
pub(crate) type Target = Result<(ModelName, Selector), ApiError>;

/// A model and a version by the segments of a path. A segment that is not a name names no model.
pub(crate) fn target(model: &str, selector: Option<&str>) -> Target {
    let model = model.parse().map_err(|_error| ApiError::from(RouteError::UnknownModel))?;
    let selector = match selector {
        None => Selector::Default,
        Some(selector) => parse_selector(selector)?,
    };
    Ok((model, selector))
}

/// A selector of versions, as a path or a header has it.
pub(crate) fn parse_selector(text: &str) -> Result<Selector, ApiError> {
    let malformed = |error| ApiError::malformed(format!("the version is malformed: {error}"));
    text.parse().map_err(malformed)
}

/// The default model: the configured one, or the only one there is.
pub(super) fn default_target(
    snapshot: &Snapshot,
    configured: Option<&ModelName>,
    selector: Selector,
) -> Target {
    let mut models = snapshot.models.keys();
    let only = models.next().filter(|_| models.next().is_none());
    match configured.or(only) {
        Some(model) => Ok((model.clone(), selector)),
        None if snapshot.loading => Err(ApiError::not_ready()),
        None => Err(ApiError::new(ErrorCode::NotFound, "there is no default model")),
    }
}

/// The default model in the major version that a segment of a path names: `v2`.
pub(super) fn major_target(
    snapshot: &Snapshot,
    configured: Option<&ModelName>,
    segment: &str,
) -> Target {
    let digits = segment.strip_prefix('v').filter(|digits| !digits.starts_with(['+', '0']));
    let major = digits.or((segment == "v0").then_some("0")).and_then(|digits| digits.parse().ok());
    let major = major.ok_or_else(ApiError::no_such_endpoint)?;
    default_target(snapshot, configured, Selector::major(major))
}

/// The selector as a caller would write it, by which requests are compared: empty for the default.
pub(super) fn selector_text(selector: &Selector) -> String {
    match selector {
        Selector::Default => String::new(),
        Selector::Exact(version) => format!("={version}"),
        Selector::Channel(Channel::Stable) => "stable".to_owned(),
        Selector::Channel(Channel::Canary) => "canary".to_owned(),
        Selector::Range(range) => range.to_string(),
    }
}
