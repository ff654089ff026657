//! What the file says of how the server shows itself to clients of the Open Inference Protocol.

use serde::Deserialize;

use super::ConfigError;

/// The longest name of a server, in bytes: it stands in every answer about the server.
const MAX_NAME_LENGTH: usize = 128;

/// What the server says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFile {
    /// Its name; `guesthouse`. Some clients expect another server's.
    pub name: Option<String>,
    /// Whether admin keys may load and unload models at the callers' listener, where the protocol's clients
    /// do so; yes.
    pub repository_changes: Option<bool>,
}

/// The same, with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerWords {
    /// The server's name.
    pub name: String,
    /// Whether models may be loaded and unloaded at the callers' listener.
    pub repository_changes: bool,
}

impl ServerFile {
    pub(super) fn settle(self) -> Result<ServerWords, ConfigError> {
        let name = self.name.unwrap_or_else(|| "guesthouse".to_owned());
        if name.is_empty() || name.len() > MAX_NAME_LENGTH || name.chars().any(char::is_control) {
            let reason = format!("it must be 1 to {MAX_NAME_LENGTH} printable bytes");
            return Err(ConfigError::Value { key: "server.name".to_owned(), reason });
        }
        Ok(ServerWords { name, repository_changes: self.repository_changes.unwrap_or(true) })
    }
}
