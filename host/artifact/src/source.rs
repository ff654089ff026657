//! The bytes of an artifact: in memory, or in a file that is read in pieces, so that a large
//! artifact does not take as much memory.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::file::{MAX_ARTIFACT_BYTES, PIECE_BYTES, open_regular};
use super::{ArtifactError, Digest};

/// Bytes with random access.
pub(super) trait ReadAt {
    /// The number of bytes.
    fn length(&self) -> usize;

    /// Fill the buffer with the bytes from `offset` on.
    fn read_at(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()>;

    /// Read a range.
    fn bytes(&self, range: Range<usize>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        self.read_at(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Call `take` with the bytes of a range, in pieces.
    fn pieces(
        &self,
        range: Range<usize>,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; range.len().min(PIECE_BYTES)];
        for start in range.clone().step_by(PIECE_BYTES) {
            let length = (range.end - start).min(PIECE_BYTES);
            let piece = &mut buffer[..length];
            self.read_at(start, piece)?;
            take(piece)?;
        }
        Ok(())
    }

    /// Compute the digest of the concatenated ranges.
    fn digest(&self, ranges: impl IntoIterator<Item = Range<usize>>) -> io::Result<Digest> {
        let mut hasher = Sha256::new();
        for range in ranges {
            self.pieces(range, |piece| {
                hasher.update(piece);
                Ok(())
            })?;
        }
        Ok(Digest(hasher.finalize().into()))
    }
}

impl ReadAt for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn read_at(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len());
        let bytes = end.and_then(|end| self.get(offset..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The bytes of one artifact.
pub(super) enum ArtifactSource {
    /// All of it is in memory.
    Memory(Vec<u8>),
    /// The file must not be modified while it is in use; digests detect it if it is.
    File { file: File, length: usize },
}

impl ArtifactSource {
    /// Open a regular file that is no larger than an artifact may be.
    pub(super) fn open(path: &Path) -> Result<Self, ArtifactError> {
        let file = open_regular(path).map_err(ArtifactError::Read)?;
        let length = file.metadata().map_err(ArtifactError::Read)?.len();
        if length > MAX_ARTIFACT_BYTES {
            return Err(ArtifactError::TooLarge);
        }
        let length = usize::try_from(length).map_err(|_error| ArtifactError::TooLarge)?;
        Ok(Self::File { file, length })
    }

    /// Write all bytes.
    pub(super) fn copy_to(&self, to: &mut impl Write) -> io::Result<()> {
        self.pieces(0..self.length(), |piece| to.write_all(piece))
    }
}

impl ReadAt for ArtifactSource {
    fn length(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File { length, .. } => *length,
        }
    }

    fn read_at(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => bytes[..].read_at(offset, buffer),
            Self::File { file, .. } => file.read_exact_at(buffer, offset as u64),
        }
    }
}

/// Reads a range sequentially, in WebAssembly's encoding.
pub(super) struct Cursor<'a, R: ?Sized> {
    source: &'a R,
    range: Range<usize>,
}

impl<'a, R: ReadAt + ?Sized> Cursor<'a, R> {
    pub(super) fn new(source: &'a R, range: Range<usize>) -> Self {
        Self { source, range }
    }

    pub(super) fn position(&self) -> usize {
        self.range.start
    }

    /// The range that has not been read.
    pub(super) fn rest(&self) -> Range<usize> {
        self.range.clone()
    }

    pub(super) fn byte(&mut self) -> Result<u8, ArtifactError> {
        let place = self.skip(1)?;
        let bytes = self.source.bytes(place).map_err(ArtifactError::Read)?;
        Ok(bytes[0])
    }

    /// Read an unsigned 32-bit number in LEB128.
    pub(super) fn number(&mut self) -> Result<usize, ArtifactError> {
        let mut number = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 && number <= u64::from(u32::MAX) {
                return usize::try_from(number).map_err(|_error| self.malformed("a large number"));
            }
        }
        Err(self.malformed("a number of more than 32 bits"))
    }

    /// Read a length and skip this many bytes; returns their range.
    pub(super) fn part(&mut self) -> Result<Range<usize>, ArtifactError> {
        let length = self.number()?;
        self.skip(length)
    }

    fn skip(&mut self, length: usize) -> Result<Range<usize>, ArtifactError> {
        let start = self.range.start;
        let end = start.checked_add(length).filter(|end| *end <= self.range.end);
        let end = end.ok_or_else(|| self.malformed("an end too soon"))?;
        self.range.start = end;
        Ok(start..end)
    }

    fn malformed(&self, what: &str) -> ArtifactError {
        ArtifactError::Malformed(format!("{what} at byte {}", self.range.start))
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;

    #[test]
    fn a_file_reads_like_memory() {
        let bytes: Vec<u8> = (0..251).cycle().take(PIECE_BYTES * 2 + 7).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, &bytes).unwrap();
        let (file, memory) =
            (ArtifactSource::open(&path).unwrap(), ArtifactSource::Memory(bytes.clone()));
        let ranges = [5..PIECE_BYTES + 9, 0..0, 3..4];
        for source in [&file, &memory] {
            assert_eq!(source.digest(once(0..bytes.len())).unwrap(), Digest::from_content(&bytes));
            let joined = ranges.clone().map(|range| bytes[range].to_vec()).concat();
            assert_eq!(source.digest(ranges.clone()).unwrap(), Digest::from_content(&joined));
            let mut copy = Vec::new();
            source.copy_to(&mut copy).unwrap();
            assert!(copy == bytes);
            assert!(source.bytes(bytes.len() - 1..bytes.len() + 1).is_err());
        }
        // Truncate the file while it is in use.
        File::options().write(true).open(&path).unwrap().set_len(9).unwrap();
        assert!(file.digest(once(0..bytes.len())).is_err());
    }

    #[test]
    fn leb128_numbers_over_32_bits_are_rejected() {
        let number = |bytes: &[u8]| Cursor::new(bytes, 0..bytes.len()).number().ok();
        assert_eq!(number(&[0x7f]), Some(127));
        assert_eq!(number(&[0x80, 0x80, 0x00]), Some(0));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Some(u32::MAX as usize));
        for bad in [&[][..], &[0x80], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[0x80; 6]] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }
}
