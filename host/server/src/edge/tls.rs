//! TLS: the certificate of the listeners, and another one when its files change.
//!
//! Both files are looked at every few seconds, as the repository folder is, and not watched by the
//! kernel: so it works on mounted volumes, where whole folders are replaced. A pair that cannot be
//! used (yet: the two files do not change at the same moment) is logged, and the one before stays.
//! Connections keep the certificate with which they began.

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
use super::listener::{Socket, stopped};
use crate::config::TlsSection;

/// How often the files are looked at: certificates are renewed days before they end.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What is offered to clients, the first first.
const PROTOCOLS: [&[u8]; 2] = [H2, b"http/1.1"];

/// HTTP/2, in the words of the handshake.
const H2: &[u8] = b"h2";

/// The certificate that new connections get.
pub struct Tls {
    files: TlsSection,
    current: ArcSwap<ServerConfig>,
    /// What the files were when that was made of them.
    seen: Option<Seen>,
}

/// What tells a file from another one, or from what it was before.
type Identity = (u64, u64, u64, i64, i64);

type Seen = [Identity; 2];

impl Tls {
    /// The certificate of these files.
    ///
    /// # Errors
    /// [`TlsError`], if there is none that could be used.
    pub fn open(files: TlsSection) -> Result<Self, TlsError> {
        // Before the files are read: a change in between is found at the next look.
        let seen = look(&files).ok();
        let current = ArcSwap::from_pointee(load(&files)?);
        Ok(Self { files, current, seen })
    }

    /// The handshake with a caller, which need not come to an end.
    pub(super) async fn accept(&self, stream: Socket) -> io::Result<TlsStream<Socket>> {
        TlsAcceptor::from(self.current.load_full()).accept(stream).await
    }

    /// Use other files as soon as they are there, until it is time to stop.
    pub async fn follow(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let (mut used, mut refused) = (self.seen, None);
        loop {
            tokio::select! {
                () = stopped(&mut stopping) => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let this = Arc::clone(&self);
            // Disks can be slow, and this thread serves others.
            let looked = tokio::task::spawn_blocking(move || {
                let seen = look(&this.files);
                match &seen {
                    Ok(seen) if Some(*seen) == used => None,
                    _ => Some((seen.ok(), load(&this.files))),
                }
            });
            match looked.await {
                Ok(None) | Err(_) => {}
                Ok(Some((seen, Ok(config)))) => {
                    self.current.store(Arc::new(config));
                    (used, refused) = (seen, None);
                    tracing::info!(certificate = ?self.files.certificate, "certificate replaced");
                }
                // Tried again at each look, because a disk may recover, but told once.
                Ok(Some((seen, Err(error)))) => {
                    if refused != Some(seen) {
                        let cause = std::error::Error::source(&error).map(ToString::to_string);
                        tracing::error!(%error, cause, "the new certificate cannot be used, the old one stays");
                    }
                    refused = Some(seen);
                }
            }
        }
    }
}

/// Whether both sides have agreed on HTTP/2.
pub(super) fn is_http2(stream: &TlsStream<Socket>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(H2)
}

fn look(files: &TlsSection) -> io::Result<Seen> {
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
