//! Prints a request as a command for curl.

use super::rows::Row;
use super::{PredictArguments, body};
use crate::commands::operate::ServerUrl;

/// The variable in which the command expects the key.
const KEY: &str = "\"X-API-Key: $GUESTHOUSE_KEY\"";

/// The command, in one line.
pub(super) fn command(
    server: &ServerUrl,
    arguments: &PredictArguments,
    row: &Row,
) -> anyhow::Result<String> {
    let seconds = arguments.deadline.as_secs_f64();
    let mut command = format!("curl -sS --max-time {seconds} -H {KEY}");
    let mut add = |option: &str, value: &str| {
        command.push_str(&format!(" {option} {}", quote(value)));
    };
    if let Some(ca) = &arguments.ca {
        add("--cacert", &ca.to_string_lossy());
    }
    if let Some(version) = body::version_header(arguments) {
        add("-H", &format!("X-Model-Version: {version}"));
    }
    if row.files.is_empty() {
        add("-H", "Content-Type: application/json");
        add("--data-raw", &serde_json::to_string(&row.values)?);
    }
    if !row.files.is_empty() {
        for (name, value) in body::parts(&row.values)? {
            add("--form-string", &format!("{name}={value}"));
        }
        for file in &row.files {
            // In double quotes a comma or semicolon is a part of the name.
            let path = file.path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
            add("-F", &format!("{}=@\"{path}\"", file.input));
        }
    }
    let url = format!("{server}{}", body::path(arguments));
    command.push_str(&format!(" {}", quote(&url)));
    Ok(command)
}

/// Quote a word for a POSIX shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
