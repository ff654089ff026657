//! Reads the certificate and the key from PEM files.
//!
//! Private keys have many file formats, of which the server supports three. Errors name the format that
//! was found, because "no key" does not help somebody who looks at a file with a key.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The largest file that is read. A chain of certificates has some ten kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The most PEM labels that an error names.
const MAX_NAMED_SECTIONS: usize = 8;

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {0:?}")]
    Read(PathBuf, #[source] io::Error),
    /// A file is not valid PEM.
    #[error("understand {0:?}")]
    Pem(PathBuf, #[source] pem::Error),
    /// There is no certificate in the file.
    #[error("find a certificate in {0:?}: {1}")]
    NoCertificate(PathBuf, Sections),
    /// There is no private key in the file.
    #[error("find a private key in {0:?}: {1}")]
    NoKey(PathBuf, Sections),
    /// The key is encrypted, and there is no password.
    #[error(
        "use the key in {0:?}: it is encrypted; write a decrypted one for the server alone, as \
         `openssl pkey -in encrypted.key -out server.key` does"
    )]
    EncryptedKey(PathBuf),
    /// The key is of an unsupported kind, or damaged.
    #[error(
        "use the key in {0:?}: it takes an RSA key of 2048 bits or more, an ECDSA key of P-256 or \
         P-384, or an Ed25519 key"
    )]
    UnusableKey(PathBuf, #[source] rustls::Error),
    /// The certificate is damaged.
    #[error("use the certificate in {0:?}")]
    UnusableCertificate(PathBuf, #[source] rustls::Error),
    /// The key does not belong to the certificate.
    #[error(
        "use {certificate:?} with {key:?}: the key is not that of the first certificate in the file"
    )]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// TLS cannot be set up at all.
    #[error("set up the protocol versions")]
    Versions(#[source] rustls::Error),
}

/// The PEM labels of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sections(Vec<String>);

impl Sections {
    fn find(file: &[u8]) -> Self {
        let mut names = Vec::new();
        for line in lines(file) {
            let name = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----"));
            let Some(name) = name.map(str::to_owned) else { continue };
            if names.len() < MAX_NAMED_SECTIONS && !names.contains(&name) {
                names.push(name);
            }
        }
        Self(names)
    }
}

impl fmt::Display for Sections {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("the file is not PEM (DER and PKCS#12 must be converted)");
        }
        write!(formatter, "it holds `{}`", self.0.join("`, `"))
    }
}

/// Read the certificates, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file).collect();
    let chain = chain.map_err(|error| TlsError::Pem(path.to_owned(), error))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned(), Sections::find(&file)));
    }
    Ok(chain)
}

/// Read the first private key.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let file = read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&file);
    key.map_err(|error| match error {
        _ if is_encrypted(&file) => TlsError::EncryptedKey(path.to_owned()),
        pem::Error::NoItemsFound => TlsError::NoKey(path.to_owned(), Sections::find(&file)),
        error => TlsError::Pem(path.to_owned(), error),
    })
}

/// The error for a certificate and key that rustls rejects.
pub(super) fn unusable(certificate: &Path, key: &Path, error: rustls::Error) -> TlsError {
    let (certificate, key) = (certificate.to_owned(), key.to_owned());
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { certificate, key },
        rustls::Error::InvalidCertificate(_) => TlsError::UnusableCertificate(certificate, error),
        error => TlsError::UnusableKey(key, error),
    }
}

/// Whether the key is encrypted, in PKCS#8 or in OpenSSL's older format.
fn is_encrypted(file: &[u8]) -> bool {
    lines(file).any(|line| {
        line == "-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || line.starts_with("Proc-Type:") && line.ends_with("ENCRYPTED")
    })
}

/// The lines that are UTF-8, without surrounding white space.
fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    let lines = file.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines.filter_map(|line| std::str::from_utf8(line).ok()).map(str::trim)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let file = File::open(path);
    let read = file.and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes));
    read.map_err(|error| TlsError::Read(path.to_owned(), error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_names_are_listed_once_and_bounded() {
        let file =
            "-----BEGIN A-----\r\nx\r\n-----END A-----\r\n-----BEGIN B C-----\n-----BEGIN A-----";
        assert_eq!(Sections::find(file.as_bytes()), Sections(vec!["A".into(), "B C".into()]));
        assert_eq!(Sections::find(b"\x30\x82\xff\n"), Sections(Vec::new()));
        let many: String = (0..99).map(|n| format!("-----BEGIN {n}-----\n")).collect();
        assert_eq!(Sections::find(many.as_bytes()).0.len(), MAX_NAMED_SECTIONS);
    }

    #[test]
    fn both_forms_of_encrypted_keys_are_detected() {
        for encrypted in [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\r\nAAAA\r\n",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n",
        ] {
            assert!(is_encrypted(encrypted.as_bytes()), "{encrypted}");
        }
        assert!(!is_encrypted(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"));
    }
}
