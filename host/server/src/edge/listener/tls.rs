//! TLS: the certificate of the listeners, which is replaced when its files change.
//!
//! Both files are checked every few seconds rather than watched by the kernel, which also works on mounted
//! volumes, where whole folders are replaced. A pair that cannot be used (the two files do not change at
//! the same moment) is logged, and the previous one stays in use. Open connections keep their
//! certificate.

mod pem;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::{ServerConfig, version};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use self::pem::TlsError;
use super::socket::Socket;
use super::stopped;
use crate::config::TlsSection;

/// How often the files are checked. Certificates are renewed days before they expire.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The protocols that are offered to clients, in the order of preference.
const PROTOCOLS: [&[u8]; 2] = [H2, b"http/1.1"];

/// The ALPN name of HTTP/2.
const H2: &[u8] = b"h2";

/// The certificate for new connections.
pub struct Tls {
    files: TlsSection,
    current: ArcSwap<ServerConfig>,
    /// The identities of the files from which it was loaded.
    loaded: Option<Identities>,
}

/// Device, inode, size and modification time, which differ if a file was changed or replaced.
type Identity = (u64, u64, u64, i64, i64);

type Identities = [Identity; 2];

impl Tls {
    /// Load the certificate from the files.
    ///
    /// # Errors
    /// [`TlsError`], if the files have no usable certificate.
    pub fn open(files: TlsSection) -> Result<Self, TlsError> {
        // Before the files are read, so that a change in between is detected by the next check.
        let loaded = identities(&files).ok();
        let current = ArcSwap::from_pointee(load(&files)?);
        Ok(Self { files, current, loaded })
    }

    /// Perform the handshake. The caller bounds its time.
    pub(super) async fn accept(&self, stream: Socket) -> io::Result<TlsStream<Socket>> {
        TlsAcceptor::from(self.current.load_full()).accept(stream).await
    }

    /// Replace the certificate whenever its files change, until the server stops.
    pub async fn follow(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let (mut loaded, mut rejected) = (self.loaded, None);
        loop {
            tokio::select! {
                () = stopped(&mut stopping) => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
            let this = Arc::clone(&self);
            // A slow disk must not block this thread, which serves requests.
            let checked = tokio::task::spawn_blocking(move || {
                let found = identities(&this.files);
                match &found {
                    Ok(found) if Some(*found) == loaded => None,
                    _ => Some((found.ok(), load(&this.files))),
                }
            });
            match checked.await {
                Ok(None) | Err(_) => {}
                Ok(Some((found, Ok(config)))) => {
                    self.current.store(Arc::new(config));
                    (loaded, rejected) = (found, None);
                    tracing::info!(certificate = ?self.files.certificate, "certificate replaced");
                }
                // Retried at each check, because a disk may recover, but logged once.
                Ok(Some((found, Err(error)))) => {
                    if rejected != Some(found) {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::error!(%error, cause, "the new certificate cannot be used, the previous one stays in use");
                    }
                    rejected = Some(found);
                }
            }
        }
    }
}

/// Whether the handshake has negotiated HTTP/2.
pub(super) fn is_http2(stream: &TlsStream<Socket>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(H2)
}

fn identities(files: &TlsSection) -> io::Result<Identities> {
    let identity = |path: &Path| -> io::Result<Identity> {
        let file = fs::metadata(path)?;
        Ok((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
    };
    Ok([identity(&files.certificate)?, identity(&files.key)?])
}

fn load(files: &TlsSection) -> Result<ServerConfig, TlsError> {
    let chain = pem::certificates(&files.certificate)?;
    let key = pem::private_key(&files.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(TlsError::Versions)?
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let mut config =
        config.map_err(|error| pem::unusable(&files.certificate, &files.key, error))?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}
