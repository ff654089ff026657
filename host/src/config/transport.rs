//! What the file says of the way to the server: TLS, and web pages of other origins.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// The certificate of all listeners; without it, they speak plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFile {
    /// PEM: the server's certificate, then those that lead to a root.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// Which web pages may ask; none by default, because a page of anybody's could ask with the network
/// that its visitor is in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsFile {
    /// Origins as browsers send them, `https://example.org`, or `*` for all of them; none.
    pub origins: Option<Vec<String>>,
}

/// The origins whose pages may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// None, and nothing is said of it.
    #[default]
    None,
    /// Every page there is.
    Any,
    /// These, byte for byte.
    Some(BTreeSet<String>),
}

impl CorsFile {
    pub(super) fn settle(self) -> Result<Origins, ConfigError> {
        let origins: BTreeSet<String> = self.origins.unwrap_or_default().into_iter().collect();
        if origins.is_empty() {
            return Ok(Origins::None);
        }
        if origins.contains("*") {
            return match origins.len() {
                1 => Ok(Origins::Any),
                _ => Err(wrong("`*` stands for all others")),
            };
        }
        if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(wrong(&format!(
                "{bad:?} is no origin: `https://` or `http://`, a host in lower case, and the port \
                 if it is another than usual"
            )));
        }
        Ok(Origins::Some(origins))
    }
}

fn wrong(reason: &str) -> ConfigError {
    ConfigError::Value { key: "cors.origins".to_owned(), reason: reason.to_owned() }
}

/// Whether a browser could send it: with a path or in capitals it would never match.
fn is_origin(text: &str) -> bool {
    let Some((scheme @ ("http" | "https"), rest)) = text.split_once("://") else {
        return false;
    };
    let usual = if scheme == "http" { ":80" } else { ":443" };
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte);
    !rest.is_empty() && rest.bytes().all(good) && !rest.ends_with(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(origins: &[&str]) -> Result<Origins, ConfigError> {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        CorsFile { origins: Some(origins) }.settle()
    }

    #[test]
    fn origins_are_what_browsers_send() {
        assert_eq!(CorsFile::default().settle().unwrap(), Origins::None);
        assert_eq!(settle(&["*"]).unwrap(), Origins::Any);
        for good in ["https://example.org", "http://localhost:8080", "http://[::1]:3000"] {
            assert!(settle(&[good]).is_ok(), "{good}");
        }
        for bad in [
            "example.org",
            "https://",
            "https://example.org/",
            "https://Example.org",
            "https://example.org:443",
            "ftp://example.org",
            "null",
            "https://*.example.org",
        ] {
            assert!(settle(&[bad]).is_err(), "{bad}");
        }
        assert!(settle(&["*", "https://example.org"]).is_err());
    }
}
