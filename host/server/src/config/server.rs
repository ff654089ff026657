//! `[server]`: how the server presents itself to clients of the Open Inference Protocol.

use schemars::JsonSchema;
use serde::Deserialize;

use super::ConfigError;

/// The longest server name, in bytes: it is part of every response about the server.
const MAX_NAME_LENGTH: usize = 128;

/// How the server presents itself to clients of the Open Inference Protocol.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerSection {
    /// The server name in `GET /v2`. Some clients check for the name of another server.
    pub name: Option<String>,
    /// Whether admin keys may load and unload models at the public listeners, as clients of the
    /// protocol do.
    pub repository_changes: Option<bool>,
}

/// The validated form of [`ServerSection`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The server name.
    pub name: String,
    /// Whether models may be loaded and unloaded at the public listeners.
    pub repository_changes: bool,
}

impl ServerSection {
    pub(super) fn validate(self) -> Result<ServerIdentity, ConfigError> {
        let name = self.name.unwrap_or_else(|| "guesthouse".to_owned());
        if name.is_empty() || name.len() > MAX_NAME_LENGTH || name.chars().any(char::is_control) {
            let reason = format!("it must be 1 to {MAX_NAME_LENGTH} printable bytes");
            return Err(ConfigError::Value { key: "server.name".to_owned(), reason });
        }
        Ok(ServerIdentity { name, repository_changes: self.repository_changes.unwrap_or(true) })
    }
}
