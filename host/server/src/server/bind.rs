//! Binding the sockets of a listener: one for an address, or one for each address of a name.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use tokio::net::TcpListener;

use super::error::ServeError;
use crate::config::ListenAddress;

/// How often the system is asked for a port that is free at all addresses of a name. Most ports are free, so a
/// second attempt is rare.
const MAX_PORT_ATTEMPTS: usize = 8;

/// Listen on the address, or on all addresses of the name that belong to this machine, at least one. With port 0,
/// all of them get the same port.
///
/// # Errors
/// [`ServeError::Listen`] if the name is unknown, an address is in use, or none belongs to this machine.
pub(super) async fn listen(wanted: &ListenAddress) -> Result<Vec<TcpListener>, ServeError> {
    let failed = |error| ServeError::Listen(wanted.clone(), error);
    let name = wanted.clone();
    let resolved = tokio::task::spawn_blocking(move || name.resolve()).await;
    let addresses = resolved.map_err(io::Error::other).and_then(|resolved| resolved);
    let addresses = addresses.map_err(failed)?;
    let is_name = matches!(wanted, ListenAddress::Name { .. });
    let mut attempts = 0;
    loop {
        attempts += 1;
        match bind(&addresses, is_name).await {
            Err(error) if may_retry_port(&error, &addresses) && attempts < MAX_PORT_ATTEMPTS => {}
            bound => return bound.map_err(failed),
        }
    }
}

/// The addresses of the sockets.
pub(super) fn addresses(listeners: &[TcpListener]) -> impl Iterator<Item = SocketAddr> {
    listeners.iter().filter_map(|listener| listener.local_addr().ok())
}

async fn bind(addresses: &[SocketAddr], is_name: bool) -> io::Result<Vec<TcpListener>> {
    let (mut listeners, mut port) = (Vec::new(), None);
    let mut missing = None;
    for address in addresses {
        let mut address = *address;
        address.set_port(port.unwrap_or(address.port()));
        match TcpListener::bind(address).await {
            Ok(listener) => {
                port = Some(listener.local_addr()?.port());
                listeners.push(listener);
            }
            // A name often has addresses of an IP version that the machine does not support.
            Err(error) if is_name && is_not_local(&error) => missing = Some((address, error)),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some((_, error)) if listeners.is_empty() => Err(error),
        Some((address, error)) => {
            tracing::warn!(%address, %error, "an address of the name is ignored");
            Ok(listeners)
        }
        None => Ok(listeners),
    }
}

fn is_not_local(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

/// Whether another port may be free at all addresses, if the system chooses the port.
fn may_retry_port(error: &io::Error, addresses: &[SocketAddr]) -> bool {
    error.kind() == io::ErrorKind::AddrInUse && addresses.iter().any(|address| address.port() == 0)
}
