//! Binding the sockets of a listener: one for an address, one for each address of a name.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use tokio::net::TcpListener;

use super::ServeError;
use crate::config::ListenAddress;

/// How often the system is asked for a port that is free at each address of a name. Most ports are
/// free, so the second time is rare already.
const MAX_PORT_CHOICES: usize = 8;

/// Listen at the address, or at all addresses of the name that this machine has; at least one. With
/// port 0 they all have the same port.
///
/// # Errors
/// [`ServeError::Listen`], if the name is not known, an address is taken, or none is this machine's.
pub(super) async fn listen(wanted: &ListenAddress) -> Result<Vec<TcpListener>, ServeError> {
    let failed = |error| ServeError::Listen(wanted.clone(), error);
    let name = wanted.clone();
    let resolved = tokio::task::spawn_blocking(move || name.resolve()).await;
    let addresses = resolved.map_err(io::Error::other).and_then(|resolved| resolved);
    let addresses = addresses.map_err(failed)?;
    let is_name = matches!(wanted, ListenAddress::Name { .. });
    let mut choices = 0;
    loop {
        choices += 1;
        match bind(&addresses, is_name).await {
            Err(error) if may_choose_again(&error, &addresses) && choices < MAX_PORT_CHOICES => {}
            bound => return bound.map_err(failed),
        }
    }
}

/// What the sockets are bound to.
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
            // Machines often have names for addresses of a version that they do not speak.
            Err(error) if is_name && is_not_ours(&error) => missing = Some((address, error)),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some((_, error)) if listeners.is_empty() => Err(error),
        Some((address, error)) => {
            tracing::warn!(%address, %error, "an address of the name is left out");
            Ok(listeners)
        }
        None => Ok(listeners),
    }
}

fn is_not_ours(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

/// Whether another port might be free, where the system chooses it for the first address.
fn may_choose_again(error: &io::Error, addresses: &[SocketAddr]) -> bool {
    error.kind() == io::ErrorKind::AddrInUse && addresses.iter().any(|address| address.port() == 0)
}
