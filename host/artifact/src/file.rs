//! Reads untrusted files: only regular files, and never more bytes than an artifact may have.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use super::ArtifactError;

/// The largest size of an artifact, in bytes.
pub const MAX_ARTIFACT_BYTES: u64 = 1 << 30;

/// The size of the pieces in which files are read, in bytes: large enough to keep a disk busy.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Open a regular file, or the one that a symbolic link points to.
///
/// # Errors
/// The file cannot be opened, or it is a folder, a pipe, a device or a socket.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Without `NONBLOCK`, opening a pipe blocks until somebody opens it for writing; regular files
    // ignore the flag. `NOCTTY` prevents a terminal from becoming the controlling one of this
    // process.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let not_regular = || io::Error::other("it is not a regular file");
    match file {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(not_regular()),
        // Opening a socket, or a device without a driver, fails.
        Err(_) if path.metadata().is_ok_and(|metadata| !metadata.is_file()) => Err(not_regular()),
        Err(error) => Err(error),
    }
}

/// Copy a regular file that is no larger than an artifact may be. Others may write to it meanwhile.
///
/// # Errors
/// [`ArtifactError`] for the file, or the error of `write`.
pub fn copy_limited<E: From<ArtifactError>>(
    path: &Path,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = open_regular(path).map_err(ArtifactError::Read)?.take(MAX_ARTIFACT_BYTES + 1);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut copied = 0;
    loop {
        let read = match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(ArtifactError::Read)?,
        };
        copied += read as u64;
        if copied > MAX_ARTIFACT_BYTES {
            return Err(ArtifactError::TooLarge.into());
        }
        match read {
            0 => return Ok(()),
            read => write(&buffer[..read])?,
        }
    }
}

/// Read a regular file that is no larger than an artifact may be.
pub(super) fn read_limited(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    read_at_most(path, MAX_ARTIFACT_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => ArtifactError::TooLarge,
        _ => ArtifactError::Read(error),
    })
}

/// Read a regular file of at most `most` bytes.
///
/// # Errors
/// The file cannot be read, or [`io::ErrorKind::FileTooLarge`].
pub(super) fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let too_large = || {
        let what = format!("it is larger than {} MiB", most >> 20);
        io::Error::new(io::ErrorKind::FileTooLarge, what)
    };
    let file = open_regular(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Err(too_large());
    }
    // One more byte, so that the end is found without reallocating.
    let mut bytes = Vec::with_capacity(usize::try_from(length + 1).unwrap_or_default());
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_pipes_do_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), b"1").unwrap();
        symlink(path("file"), path("link")).unwrap();
        for good in ["file", "link"] {
            assert!(open_regular(&path(good)).is_ok(), "{good}");
        }
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let here = rustix::fs::CWD;
        rustix::fs::mknodat(here, path("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        symlink(path("pipe"), path("link-to-pipe")).unwrap();
        for bad in ["pipe", "socket", "folder", "link-to-pipe", "/dev/null"] {
            let error = open_regular(&path(bad)).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{bad}: {error}");
        }
        symlink(path("absent"), path("dangling")).unwrap();
        symlink(path("loop"), path("loop")).unwrap();
        for bad in ["absent", "dangling", "loop"] {
            assert!(open_regular(&path(bad)).is_err(), "{bad}");
        }
    }
}
