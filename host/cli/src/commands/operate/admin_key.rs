//! Keys of servers, read from the environment or a private file, and never from the command line, which
//! every user of the machine can read.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ureq::http::HeaderValue;

/// The variable with the key, if no file is named.
const KEY_VARIABLE: &str = "GUESTHOUSE_ADMIN_KEY";

/// The longest key, in bytes. A longer file is not a key file.
const MAX_KEY_BYTES: u64 = 4096;

/// The permission bits of users who neither own the file nor belong to its group.
const OTHERS: u32 = 0o007;

/// There is no valid admin key.
#[derive(Debug, thiserror::Error)]
pub(in crate::commands) enum KeyError {
    #[error("there is no admin key: set {KEY_VARIABLE}, or name a private file by --key-file")]
    Missing,
    #[error("the key is in {}, which cannot be read", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "the key is in {}, which every user of this machine can access: \
         make it private (chmod 600)",
        path.display()
    )]
    Open { path: PathBuf },
    #[error("the key in {place} is empty, too long or has characters that a header cannot have")]
    Malformed { place: String },
}

/// Read the admin key. A file takes precedence over the environment.
pub(super) fn find(file: Option<&Path>) -> Result<HeaderValue, KeyError> {
    find_in(file, KEY_VARIABLE)?.ok_or(KeyError::Missing)
}

/// Read a key from a file or from this variable, if there is one.
pub(in crate::commands) fn find_in(
    file: Option<&Path>,
    variable: &'static str,
) -> Result<Option<HeaderValue>, KeyError> {
    let malformed_variable = || KeyError::Malformed { place: variable.to_owned() };
    match file {
        Some(path) => {
            let key = read(path)?;
            let malformed = || KeyError::Malformed { place: path.display().to_string() };
            header(&key).ok_or_else(malformed).map(Some)
        }
        None => match std::env::var(variable) {
            Ok(key) if !key.is_empty() => header(&key).ok_or_else(malformed_variable).map(Some),
            Ok(_) | Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(malformed_variable()),
        },
    }
}

fn read(path: &Path) -> Result<String, KeyError> {
    let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    // The metadata of the open file: another file may get its name at any time.
    if file.metadata().map_err(unreadable)?.mode() & OTHERS != 0 {
        return Err(KeyError::Open { path: path.to_owned() });
    }
    let mut key = String::new();
    file.take(MAX_KEY_BYTES + 1).read_to_string(&mut key).map_err(unreadable)?;
    Ok(key)
}

/// The key as a header, without the line end that editors and `echo` add.
fn header(key: &str) -> Option<HeaderValue> {
    let key = key.trim();
    let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
    let fits = u64::try_from(key.len()).is_ok_and(|length| (1..=MAX_KEY_BYTES).contains(&length));
    let mut header = HeaderValue::from_str(key).ok().filter(|_| visible && fits)?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_file_is_read_without_its_line_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"secret-key\r\n").unwrap();
        let key = find(Some(file.path())).unwrap();
        assert_eq!(key.as_bytes(), b"secret-key");
        assert!(!format!("{key:?}").contains("secret"), "keys are not for logs");
    }

    #[test]
    fn a_file_that_others_can_read_is_rejected() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"secret-key").unwrap();
        file.as_file().set_permissions(Permissions::from_mode(0o644)).unwrap();
        let error = find(Some(file.path())).unwrap_err();
        assert!(matches!(error, KeyError::Open { .. }), "{error}");
        // A group of operators may share the key.
        file.as_file().set_permissions(Permissions::from_mode(0o440)).unwrap();
        find(Some(file.path())).unwrap();
    }

    #[test]
    fn a_malformed_key_is_rejected_and_not_shown() {
        let long = "k".repeat(5000);
        for bad in ["", "\n", "two words", "two\nlines", "schlüssel", long.as_str()] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(bad.as_bytes()).unwrap();
            let error = find(Some(file.path())).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
            assert!(bad.trim().is_empty() || !error.to_string().contains(bad.trim()), "{error}");
        }
        let error = find(Some(Path::new("/nowhere/key"))).unwrap_err();
        assert!(matches!(error, KeyError::Unreadable { .. }), "{error}");
    }
}
