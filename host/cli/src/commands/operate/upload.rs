//! The artifact that is uploaded. It is read in chunks, and again for each attempt.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _};
use std::path::Path;

/// A file to upload.
#[derive(Debug)]
pub(super) struct Upload {
    file: File,
    length_bytes: u64,
}

/// The file cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("it became shorter while it was sent")]
    Shorter,
}

impl Upload {
    /// Open the file. Bytes appended later are not sent.
    pub(super) fn open(path: &Path) -> Result<Self, UploadError> {
        // Opening a pipe blocks until it has a writer, and its bytes cannot be sent twice.
        if !fs::metadata(path)?.is_file() {
            return Err(UploadError::NotRegular);
        }
        let file = File::open(path)?;
        let length_bytes = file.metadata()?.len();
        Ok(Self { file, length_bytes })
    }

    pub(super) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// The body, from the beginning of the file.
    pub(super) fn body(&self) -> Result<UploadBody<'_>, UploadError> {
        (&self.file).rewind()?;
        Ok(UploadBody { file: &self.file, left_bytes: self.length_bytes })
    }
}

/// Yields exactly the announced number of bytes, or an [`UploadError`] inside an [`io::Error`].
#[derive(Debug)]
pub(super) struct UploadBody<'a> {
    file: &'a File,
    left_bytes: u64,
}

impl Read for UploadBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = !buffer.is_empty() && self.left_bytes > 0;
        let read = self.file.take(self.left_bytes).read(buffer);
        let read = read.map_err(|error| io::Error::other(UploadError::Read(error)))?;
        if read == 0 && wanted {
            return Err(io::Error::other(UploadError::Shorter));
        }
        self.left_bytes -= read as u64;
        Ok(read)
    }
}

/// The [`UploadError`] inside the error, if there is one.
pub(super) fn reason(error: io::Error) -> Result<UploadError, io::Error> {
    error.downcast::<UploadError>()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn each_attempt_sends_the_announced_bytes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"artifact").unwrap();
        let upload = Upload::open(file.path()).unwrap();
        file.write_all(b" and more").unwrap();
        for _attempt in 0..2 {
            let mut sent = String::new();
            upload.body().unwrap().read_to_string(&mut sent).unwrap();
            assert_eq!((sent.as_str(), upload.length_bytes()), ("artifact", 8));
        }
    }

    #[test]
    fn a_shrinking_file_fails_the_upload() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"artifact").unwrap();
        let upload = Upload::open(file.path()).unwrap();
        let mut body = upload.body().unwrap();
        body.read_exact(&mut [0; 4]).unwrap();
        file.as_file().set_len(4).unwrap();
        let error = body.read(&mut [0; 4]).unwrap_err();
        assert!(matches!(reason(error), Ok(UploadError::Shorter)));
        assert!(reason(io::Error::other("else")).is_err());
    }

    #[test]
    fn only_regular_files_are_uploaded() {
        let folder = tempfile::tempdir().unwrap();
        let error = Upload::open(folder.path()).unwrap_err();
        assert!(matches!(error, UploadError::NotRegular), "{error}");
        let error = Upload::open(&folder.path().join("nothing")).unwrap_err();
        assert!(matches!(error, UploadError::Read(_)), "{error}");
    }
}
