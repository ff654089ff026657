//! The certificates that the client trusts over TLS: those of a file, and no others. The program has no
//! list of public authorities; where one of them has issued the server's certificate, the file is the
//! system's list.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// There are no certificates to trust.
#[derive(Debug, thiserror::Error)]
pub(in crate::commands) enum TrustError {
    #[error("https needs --ca: a file with the certificates that are trusted")]
    Missing,
    #[error("the trusted certificates are in {}, which cannot be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("there is no certificate in {}", path.display())]
    Malformed { path: PathBuf },
}

/// The TLS configuration of the client.
pub(in crate::commands) fn find(
    is_https: bool,
    file: Option<&Path>,
) -> Result<TlsConfig, TrustError> {
    let roots = match file {
        Some(path) => read(path)?,
        None if is_https => return Err(TrustError::Missing),
        None => Vec::new(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots)));
    Ok(config.unversioned_rustls_crypto_provider(provider).build())
}

fn read(path: &Path) -> Result<Vec<ureq::tls::Certificate<'static>>, TrustError> {
    let unreadable = |source| TrustError::Unreadable { path: path.to_owned(), source };
    let pem = fs::read(path).map_err(unreadable)?;
    let roots: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            Ok(_) | Err(_) => None,
        })
        .collect();
    if roots.is_empty() { Err(TrustError::Malformed { path: path.to_owned() }) } else { Ok(roots) }
}
