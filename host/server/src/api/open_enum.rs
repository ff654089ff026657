//! Enumerations that a later release may extend.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A variant of `T`, or a word that this release does not know. The server writes known variants only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OpenEnum<T> {
    /// A variant of the enumeration.
    Known(T),
    /// A word of another release.
    Other(String),
}

impl<T> From<T> for OpenEnum<T> {
    fn from(variant: T) -> Self {
        Self::Known(variant)
    }
}

impl<T: DeserializeOwned> OpenEnum<T> {
    /// Parse the word.
    pub(crate) fn new(text: &str) -> Self {
        let known = T::deserialize(text.into_deserializer() as StrDeserializer<'_, ValueError>);
        known.map_or_else(|_unknown| Self::Other(text.to_owned()), Self::Known)
    }
}

/// The word as it is in JSON.
impl<T: Serialize> fmt::Display for OpenEnum<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_value(self) {
            Ok(Value::String(word)) => formatter.write_str(&word),
            Ok(_) | Err(_) => Err(fmt::Error),
        }
    }
}

/// The schema of `T`.
impl<T: JsonSchema> JsonSchema for OpenEnum<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::VersionState;

    #[test]
    fn an_unknown_word_is_kept_as_it_is() {
        for (json, word) in [
            (r#""ready""#, OpenEnum::Known(VersionState::Ready)),
            (r#""hibernating""#, OpenEnum::Other("hibernating".to_owned())),
        ] {
            assert_eq!(serde_json::from_str::<OpenEnum<VersionState>>(json).unwrap(), word);
            assert_eq!(serde_json::to_string(&word).unwrap(), json);
            assert_eq!(format!("\"{word}\""), json);
        }
        assert!(serde_json::from_str::<OpenEnum<VersionState>>("1").is_err());
    }
}
