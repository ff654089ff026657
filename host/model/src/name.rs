//! The names of models and the identifiers of versions.

use std::fmt;
use std::str::FromStr;

use semver::Version;
use serde::{Deserialize, Serialize};

/// The longest name of a model, in bytes: names are used in URLs, file names and metric labels.
const MAX_NAME_LENGTH: usize = 64;

/// The name of a model: 1 to 64 lower-case letters, digits, `-` and `_`, beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

impl ModelName {
    /// The name as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not a valid [`ModelName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a model's name is 1 to 64 lower-case letters, digits, `-` and `_`, beginning with a letter"
)]
pub struct NameError;

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
        };
        let good = name.len() <= MAX_NAME_LENGTH
            && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
            && name.bytes().all(allowed);
        if good { Ok(Self(name.to_owned())) } else { Err(NameError) }
    }
}

impl TryFrom<String> for ModelName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A version of a model, written `name@1.2.3`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionId {
    /// The name of the model.
    pub name: ModelName,
    /// The semantic version.
    pub version: Version,
}

impl fmt::Display for VersionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_urls_and_file_names() {
        for good in ["toxicity", "a", "resnet-50_v2"] {
            assert_eq!(good.parse::<ModelName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(65);
        for bad in ["", "Toxicity", "1st", "a/b", "a.b", "..", "a b", "é", long.as_str()] {
            assert_eq!(bad.parse::<ModelName>(), Err(NameError), "{bad}");
        }
    }
}
