//! Parsing of query strings: known parameters, each once, or an error.
//!
//! `serde_urlencoded` is small and finished. Its successor `serde_html_form` (0.4.1, tried) reads an empty number
//! as a missing one, so that `?limit=` would get the default instead of an error, takes `on` for a boolean,
//! repeats the caller's value in the message, and does not name a parameter that is given twice.

use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The parameters of a query.
pub(crate) fn parse<T: DeserializeOwned>(query: Option<&str>) -> Result<T, ApiError> {
    // The library's messages have names of fields and types, and no values except numbers.
    serde_urlencoded::from_str(query.unwrap_or_default())
        .map_err(|error| ApiError::malformed(format!("the query is malformed: {error}")))
}
