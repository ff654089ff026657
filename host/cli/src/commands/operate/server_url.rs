//! The address of a server's admin API.

use std::fmt;
use std::str::FromStr;

use ureq::http::uri::Uri;

/// The URL of an admin API, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) struct ServerUrl(String);

/// A string is not a [`ServerUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a server's address is like http://127.0.0.1:8002 or https://127.0.0.1:8002")]
pub(in crate::commands) struct ServerUrlError;

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        let uri: Uri = text.parse().map_err(|_malformed| ServerUrlError)?;
        let authority = uri.authority().ok_or(ServerUrlError)?;
        let host_alone = authority.as_str() == authority.host();
        let is_valid = matches!(uri.scheme_str(), Some("http" | "https"))
            && (host_alone || authority.port_u16().is_some())
            && !authority.host().is_empty()
            && !authority.as_str().contains('@')
            && !text.contains(['?', '#']);
        if is_valid { Ok(Self(text.trim_end_matches('/').to_owned())) } else { Err(ServerUrlError) }
    }
}

impl ServerUrl {
    /// Whether the server is reached over TLS.
    pub(in crate::commands) fn is_https(&self) -> bool {
        self.0.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_urls_have_scheme_host_and_port() {
        let good = [
            ("http://127.0.0.1:8002", "http://127.0.0.1:8002"),
            ("http://localhost", "http://localhost"),
            ("http://[::1]:8002/", "http://[::1]:8002"),
            ("https://127.0.0.1:8002", "https://127.0.0.1:8002"),
            ("http://gateway:80/guesthouse/", "http://gateway:80/guesthouse"),
        ];
        for (text, url) in good {
            assert_eq!(text.parse::<ServerUrl>().unwrap().to_string(), url);
        }
        for bad in [
            "",
            "127.0.0.1:8002",
            "ftp://127.0.0.1:8002",
            "http://",
            "http://:8002",
            "http://host:99999",
            "http://somebody:secret@host:8002",
            "http://host:8002/?a=b",
            "http://host:8002/#a",
            "http://host name",
            "/admin",
        ] {
            assert_eq!(bad.parse::<ServerUrl>(), Err(ServerUrlError), "{bad}");
        }
    }
}
