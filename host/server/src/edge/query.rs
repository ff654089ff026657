//! The part of an address after its question mark: known names, each once, or an error.

use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The fields of a query.
pub(crate) fn parse<T: DeserializeOwned>(query: Option<&str>) -> Result<T, ApiError> {
    // What it says names fields and types, and repeats nothing of the values but numbers.
    serde_urlencoded::from_str(query.unwrap_or_default())
        .map_err(|error| ApiError::malformed(format!("the query is malformed: {error}")))
}
