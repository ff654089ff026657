//! Single configuration keys from outside the file: `--set limits.body_bytes=1000` on the command line,
//! `GUESTHOUSE__LIMITS__BODY_BYTES=1000` in the environment. They take precedence over the file and are
//! validated like it.

use toml::{Table, Value};

use super::ConfigError;

/// The prefix of the environment variables. Two underscores separate the parts of a key.
const PREFIX: &str = "GUESTHOUSE__";

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The parts of the key, at least one, none empty.
    path: Vec<String>,
    value: Value,
}

impl Override {
    /// Parse an argument of the command line: a dotted key, `=`, and a TOML value. A value that is not
    /// TOML is a string.
    ///
    /// # Errors
    /// [`ConfigError::Value`], if there is no key or no `=`.
    pub fn from_argument(text: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: &str| ConfigError::Value {
            key: text.split('=').next().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        };
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("it has no value"))?;
        let path: Vec<_> = key.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(wrong("a part of the key is empty"));
        }
        Ok(Self { path, value: parse_value(value) })
    }

    /// Parse an environment variable; `None` if it does not have the prefix.
    ///
    /// # Errors
    /// [`ConfigError::Value`], if a part of its name is empty.
    pub fn from_variable(name: &str, value: &str) -> Result<Option<Self>, ConfigError> {
        let Some(key) = name.strip_prefix(PREFIX) else { return Ok(None) };
        let path: Vec<_> = key.split("__").map(str::to_lowercase).collect();
        if path.iter().any(String::is_empty) {
            let reason = "a part of the variable's name is empty".to_owned();
            return Err(ConfigError::Value { key: name.to_owned(), reason });
        }
        Ok(Some(Self { path, value: parse_value(value) }))
    }

    /// A top-level key and a string.
    pub fn from_text(key: &str, value: String) -> Self {
        Self { path: vec![key.to_owned()], value: Value::String(value) }
    }

    /// The dotted key.
    pub fn key(&self) -> String {
        self.path.join(".")
    }

    /// Set the key in the table, whatever it was before.
    pub(super) fn apply(&self, table: &mut Table) -> Result<(), ConfigError> {
        let (last, sections) = self.path.split_last().expect("a key has a part");
        let mut section = table;
        for name in sections {
            let inner = section.entry(name.clone()).or_insert_with(|| Table::new().into());
            section = inner.as_table_mut().ok_or_else(|| ConfigError::Value {
                key: self.key(),
                reason: format!("`{name}` is not a section"),
            })?;
        }
        section.insert(last.clone(), self.value.clone());
        Ok(())
    }
}

fn parse_value(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    // More than one line of TOML is not a value.
    let value = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::ConfigFile;
    use super::*;

    fn read(overrides: &[&str]) -> Result<ConfigFile, ConfigError> {
        let overrides: Result<Vec<_>, _> =
            overrides.iter().map(|text| Override::from_argument(text)).collect();
        ConfigFile::read(None, &overrides?)
    }

    #[test]
    fn overrides_replace_values_and_are_validated() {
        let file = read(&[
            "listen=127.0.0.1:9",
            "limits.batch_rows = 5",
            "models.text-direction.isolation=\"fresh\"",
            "default_model=toxicity",
        ]);
        let settings = file.unwrap().validate().unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:9");
        assert_eq!(settings.limits.batch_rows, 5);
        assert_eq!(settings.default_model.unwrap().as_str(), "toxicity");
        assert_eq!(settings.models.len(), 1);
        for bad in ["limits.rows=1", "limits.batch_rows=x", "listen", "=1", "a..b=1", "listen.x=1"]
        {
            assert!(read(&["limits.batch_rows=5", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_separate_keys_by_two_underscores() {
        let good = Override::from_variable("GUESTHOUSE__LIMITS__BODY_BYTES", "7").unwrap().unwrap();
        assert_eq!((good.key().as_str(), &good.value), ("limits.body_bytes", &Value::Integer(7)));
        assert_eq!(Override::from_variable("GUESTHOUSE_LISTEN", "x").unwrap(), None);
        assert!(Override::from_variable("GUESTHOUSE__LIMITS__", "x").is_err());
    }

    #[test]
    fn a_value_that_is_not_toml_is_a_string() {
        assert_eq!(parse_value("1\nb = 2"), Value::String("1\nb = 2".to_owned()));
        assert_eq!(parse_value("[1, 2]").as_array().map(Vec::len), Some(2));
        assert_eq!(parse_value("a b"), Value::String("a b".to_owned()));
    }
}
