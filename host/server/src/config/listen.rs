//! The addresses of the listeners, and the check that no two of them share a port.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ConfigError, Settings};

/// The most addresses of one name that are bound. The name of a machine has one or two.
const MAX_ADDRESSES: usize = 16;

/// The longest host name in DNS.
const MAX_NAME_LENGTH: usize = 253;

/// An address or a host name, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub enum ListenAddress {
    /// One address.
    Address(SocketAddr),
    /// Every address that the name resolves to when the server starts.
    Name {
        /// The name of a host, such as `localhost`.
        host: String,
        /// The port; 0 lets the system choose one.
        port: u16,
    },
}

/// A string is not a [`ListenAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a listen address: it takes an address or a name, and a port, such as \
     `127.0.0.1:8000`, `[::1]:8000`, `0.0.0.0:8000` or `localhost:8000`"
)]
pub struct ListenAddressError(String);

impl ListenAddress {
    /// An address that only this machine can reach.
    pub(super) const fn loopback(port: u16) -> Self {
        Self::Address(SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port))
    }

    /// Resolve it to at least one address. May query a name server.
    ///
    /// # Errors
    /// The name is unknown, or cannot be looked up.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = match self {
            Self::Address(address) => return Ok(vec![*address]),
            Self::Name { host, port } => (host.as_str(), *port),
        };
        let mut addresses = Vec::new();
        for address in (host, port).to_socket_addrs()?.take(MAX_ADDRESSES) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
        }
        Ok(addresses)
    }
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or_default();
        match port.parse() {
            Ok(port) if is_host_name(host) && port_is_plain(text) => {
                Ok(Self::Name { host: host.to_owned(), port })
            }
            _ => Err(ListenAddressError(text.to_owned())),
        }
    }
}

/// Whether the port is digits only: the standard library accepts a sign.
fn port_is_plain(text: &str) -> bool {
    text.ends_with(|last: char| last.is_ascii_digit()) && !text.contains('+')
}

/// Whether it is a host name. One that ends in a number is not: as old C libraries do, the resolver
/// would read `0:80` as all addresses and `127.1:80` as one.
fn is_host_name(host: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(good);
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.starts_with(|first: char| first.is_ascii_digit());
    name.len() <= MAX_NAME_LENGTH && name.split('.').all(is_label) && !is_number
}

impl TryFrom<String> for ListenAddress {
    type Error = ListenAddressError;

    fn try_from(text: String) -> Result<Self, ListenAddressError> {
        text.parse()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Name { host, port } => write!(formatter, "{host}:{port}"),
        }
    }
}

/// The address of the gRPC listener, or `off`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub enum GrpcListen {
    /// gRPC is not served.
    Off,
    /// gRPC is served at this address.
    At(ListenAddress),
}

impl Default for GrpcListen {
    fn default() -> Self {
        Self::At(ListenAddress::loopback(8001))
    }
}

impl FromStr for GrpcListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let wrong = |error: ListenAddressError| format!("{error}, or `off`");
        text.parse().map(Self::At).map_err(wrong)
    }
}

impl TryFrom<String> for GrpcListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl Settings {
    /// Check that all host names resolve and that no two listeners share a port of an address.
    /// `opens_admin` says whether the admin listener will be opened. May query a name server.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key that conflicts with an earlier one.
    pub fn check_listeners(&self, opens_admin: bool) -> Result<(), ConfigError> {
        let mut listeners = vec![("listen", &self.listen)];
        if let GrpcListen::At(address) = &self.grpc_listen {
            listeners.push(("grpc_listen", address));
        }
        if opens_admin {
            listeners.push(("admin_listen", &self.admin_listen));
        }
        let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
        for (key, address) in listeners {
            let wrong = |reason| ConfigError::Value { key: key.to_owned(), reason };
            let resolved = address.resolve();
            let resolved =
                resolved.map_err(|error| wrong(format!("failed to look up {address}: {error}")))?;
            for address in &resolved {
                let other = taken.iter().find(|(_, taken)| overlap(*taken, *address));
                if let Some((other, taken)) = other {
                    let reason = format!("`{other}` already uses that port: {taken} and {address}");
                    return Err(wrong(reason));
                }
            }
            taken.extend(resolved.into_iter().map(|address| (key, address)));
        }
        Ok(())
    }
}

/// Whether both cannot be bound. Port 0 is another one each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    if one.port() != other.port() || one.port() == 0 {
        return false;
    }
    let (address, other_address) = (one.ip().to_canonical(), other.ip().to_canonical());
    // The unspecified IPv6 address includes all of IPv4, unless the machine is set up otherwise.
    let includes =
        |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    let same_link = match (one, other) {
        (SocketAddr::V6(one), SocketAddr::V6(other)) => one.scope_id() == other.scope_id(),
        _ => true,
    };
    address == other_address && same_link
        || includes(address, other_address)
        || includes(other_address, address)
}

#[cfg(test)]
mod tests {
    use super::super::ConfigFile;
    use super::*;

    #[test]
    fn addresses_and_names_have_a_port() {
        for good in [
            "127.0.0.1:8000",
            "[::1]:0",
            "[fe80::1%2]:80",
            "localhost:8000",
            "a-b.c_d.example.:65535",
        ] {
            let address: ListenAddress = good.parse().unwrap();
            assert_eq!(address.to_string(), good);
        }
        for bad in [
            "",
            "localhost",
            ":8000",
            "8000",
            "*:8000",
            "localhost:",
            "localhost:65536",
            "localhost:+80",
            "localhost:-1",
            "local host:80",
            "http://localhost:80",
            "localhost:80/",
            "::1:80",
            "[localhost]:80",
            "a..b:80",
            "0:80",
            "127.1:80",
            "2130706433:80",
            "0x7f000001:80",
            "127.0.0.256:80",
            "off",
        ] {
            assert!(bad.parse::<ListenAddress>().is_err(), "{bad}");
        }
        assert_eq!("off".parse(), Ok(GrpcListen::Off));
    }

    #[test]
    fn listeners_that_share_a_port_are_found() {
        let check = |listen: &str, grpc: &str, admin: &str| {
            let text =
                format!("listen = {listen:?}\ngrpc_listen = {grpc:?}\nadmin_listen = {admin:?}");
            let file: ConfigFile = toml::from_str(&text).unwrap();
            match file.validate().unwrap().check_listeners(true) {
                Ok(()) => None,
                Err(ConfigError::Value { key, .. }) => Some(key),
                Err(error) => panic!("{error}"),
            }
        };
        for (listen, grpc, admin, wrong) in [
            ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", None),
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", None),
            ("127.0.0.1:1", "127.0.0.2:1", "127.0.0.1:3", None),
            ("[::1]:1", "127.0.0.1:1", "off.invalid:3", Some("admin_listen")),
            ("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:3", Some("grpc_listen")),
            ("127.0.0.1:1", "off", "127.0.0.1:1", Some("admin_listen")),
            ("0.0.0.0:1", "127.0.0.1:1", "127.0.0.1:3", Some("grpc_listen")),
            ("127.0.0.1:1", "127.0.0.1:2", "0.0.0.0:2", Some("admin_listen")),
            ("[::]:1", "127.0.0.1:1", "127.0.0.1:3", Some("grpc_listen")),
            ("[::]:1", "0.0.0.0:1", "127.0.0.1:3", Some("grpc_listen")),
            ("0.0.0.0:1", "[::1]:1", "127.0.0.1:3", None),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", "127.0.0.1:3", Some("grpc_listen")),
            ("[fe80::1%1]:1", "[fe80::1%2]:1", "[fe80::1%1]:3", None),
        ] {
            assert_eq!(check(listen, grpc, admin).as_deref(), wrong, "{listen} {grpc} {admin}");
        }
    }
}
