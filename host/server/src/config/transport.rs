//! What the file says of the way to the server: TLS, proxies, and web pages of other origins.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
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

/// The reverse proxies in front of the server.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyFile {
    /// Addresses, and networks like `10.0.0.0/8`, of proxies whose headers are taken at their word; none.
    pub trusted: Option<Vec<String>>,
}

impl ProxyFile {
    pub(super) fn settle(self) -> Result<TrustedProxies, ConfigError> {
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

/// The proxies whose headers are taken at their word; none by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Whether a peer with this address is one of them. The address of a client of IPv4 is the same on a
    /// socket of IPv6.
    pub(crate) fn contains(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&peer.to_canonical()))
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

    #[test]
    fn proxies_are_known_by_their_addresses() {
        let networks = ["10.1.0.0/16", "192.0.2.7", "2001:db8::/32"];
        let proxies = ProxyFile { trusted: Some(networks.map(str::to_owned).to_vec()) };
        let proxies = proxies.settle().unwrap();
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
            assert!(ProxyFile { trusted: Some(vec![bad.to_owned()]) }.settle().is_err(), "{bad}");
        }
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
    }
}
