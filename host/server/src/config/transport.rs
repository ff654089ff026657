//! `[tls]`, `[cors]` and `[proxy]`: how clients reach the server.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::ConfigError;

/// The certificate of all listeners. Without this section they serve plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// A PEM file with the server's certificate, followed by the certificates that lead to a root. Both
    /// files are checked for changes every 2 s and replaced when they match each other.
    pub certificate: PathBuf,
    /// A PEM file with the private key, not encrypted: PKCS#8, PKCS#1 or SEC1 of an RSA, ECDSA (P-256,
    /// P-384) or Ed25519 key.
    pub key: PathBuf,
}

/// Cross-origin requests of web pages to the public listener. None are allowed by default, because any
/// page could then reach the server through the network of its visitor.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorsSection {
    /// The origins that may send requests, as browsers write them (`https://example.org`), or `*` alone
    /// for every origin.
    pub origins: Option<Vec<String>>,
}

/// The origins whose pages may send requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// None: responses carry no CORS headers.
    #[default]
    None,
    /// Every origin.
    Any,
    /// These, compared byte for byte.
    Some(BTreeSet<String>),
}

impl CorsSection {
    pub(super) fn validate(self) -> Result<Origins, ConfigError> {
        let origins: BTreeSet<String> = self.origins.unwrap_or_default().into_iter().collect();
        if origins.is_empty() {
            return Ok(Origins::None);
        }
        if origins.contains("*") {
            return match origins.len() {
                1 => Ok(Origins::Any),
                _ => Err(wrong("`*` must be the only origin")),
            };
        }
        if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(wrong(&format!(
                "{bad:?} is not an origin: `https://` or `http://`, a host in lower case, and the port \
                 if it is another than usual"
            )));
        }
        Ok(Origins::Some(origins))
    }
}

/// The reverse proxies in front of the server.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxySection {
    /// The addresses, and networks such as `10.0.0.0/8`, of proxies whose `X-Forwarded-Prefix` is
    /// honoured. From other peers the header is removed.
    pub trusted: Option<Vec<String>>,
}

impl ProxySection {
    pub(super) fn validate(self) -> Result<TrustedProxies, ConfigError> {
        let network = |text: &String| {
            let address = text.parse::<IpAddr>().map(IpNet::from).ok();
            address.or_else(|| text.parse().ok()).ok_or_else(|| ConfigError::Value {
                key: "proxy.trusted".to_owned(),
                reason: format!("{text:?} is neither an address nor a network like `10.0.0.0/8`"),
            })
        };
        let trusted = self.trusted.unwrap_or_default();
        trusted.iter().map(network).collect::<Result<_, _>>().map(TrustedProxies)
    }
}

/// The proxies whose headers are honoured; none by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Whether a peer with this address is one of them. An IPv4 address matches in its IPv6-mapped form
    /// as well.
    pub(crate) fn contains(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&peer.to_canonical()))
    }
}

fn wrong(reason: &str) -> ConfigError {
    ConfigError::Value { key: "cors.origins".to_owned(), reason: reason.to_owned() }
}

/// Whether a browser could send it as an `Origin`. With a path or upper-case letters it would never
/// match.
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

    fn validate(origins: &[&str]) -> Result<Origins, ConfigError> {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        CorsSection { origins: Some(origins) }.validate()
    }

    #[test]
    fn origins_have_the_form_that_browsers_send() {
        assert_eq!(CorsSection::default().validate().unwrap(), Origins::None);
        assert_eq!(validate(&["*"]).unwrap(), Origins::Any);
        for good in ["https://example.org", "http://localhost:8080", "http://[::1]:3000"] {
            assert!(validate(&[good]).is_ok(), "{good}");
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
            assert!(validate(&[bad]).is_err(), "{bad}");
        }
        assert!(validate(&["*", "https://example.org"]).is_err());
    }

    #[test]
    fn proxies_are_known_by_their_addresses() {
        let networks = ["10.1.0.0/16", "192.0.2.7", "2001:db8::/32"];
        let proxies = ProxySection { trusted: Some(networks.map(str::to_owned).to_vec()) };
        let proxies = proxies.validate().unwrap();
        for (peer, is_trusted) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8::1", true),
            ("::1", false),
        ] {
            assert_eq!(proxies.contains(peer.parse().unwrap()), is_trusted, "{peer}");
        }
        for bad in ["localhost", "10.0.0.0/33", "10.0.0.0/", ""] {
            assert!(
                ProxySection { trusted: Some(vec![bad.to_owned()]) }.validate().is_err(),
                "{bad}"
            );
        }
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
    }
}
