//! The files and parameters in the artifact, which are readable during `init`.
//!
//! They are streamed through an import instead of being linked in, because the memory at the end of
//! `init` is part of every instance.

use std::io::{self, Read};
use std::str::FromStr;

use crate::Error;
use crate::bindings::guesthouse::model::assets;

/// The bytes that one call requests; the contract's limit.
const CHUNK_BYTES: u64 = 8 << 20;

/// The artifact's assets and parameters.
#[derive(Debug)]
pub struct Assets(());

impl Assets {
    pub(crate) fn new() -> Self {
        Self(())
    }

    /// Whether the artifact has an asset of that name.
    pub fn contains(&self, name: &str) -> bool {
        assets::size(name).is_some()
    }

    /// Open an asset as a reader, which does not load all of it into memory.
    ///
    /// # Errors
    /// The artifact has no asset of that name.
    pub fn open(&self, name: &str) -> Result<impl Read + use<>, Error> {
        let size = assets::size(name)
            .ok_or_else(|| Error::new(format!("the artifact has no asset {name:?}")))?;
        Ok(Asset { name: name.to_owned(), size, offset: 0, chunk: Vec::new(), taken: 0 })
    }

    /// Read an asset into memory.
    ///
    /// # Errors
    /// The artifact has no asset of that name.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.open(name)?
            .read_to_end(&mut bytes)
            .map_err(|error| Error::new(format!("reading asset {name:?}: {error}")))?;
        Ok(bytes)
    }

    /// Read an asset as text.
    ///
    /// # Errors
    /// The artifact has no asset of that name, or it is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<String, Error> {
        String::from_utf8(self.read(name)?)
            .map_err(|error| Error::new(format!("asset {name:?} is not UTF-8: {error}")))
    }

    /// Parse a parameter of the manifest.
    ///
    /// # Errors
    /// The manifest has no such parameter, or it does not parse as a `T`.
    pub fn parameter<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, Error> {
        let value = assets::parameter(name)
            .ok_or_else(|| Error::new(format!("the manifest has no parameter {name:?}")))?;
        value.parse().map_err(|error| Error::new(format!("parameter {name:?}: {error}")))
    }
}

struct Asset {
    name: String,
    size: u64,
    offset: u64,
    chunk: Vec<u8>,
    taken: usize,
}

impl Read for Asset {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.chunk.len() {
            let length = CHUNK_BYTES.min(self.size - self.offset);
            if length == 0 {
                return Ok(0);
            }
            self.chunk = assets::read(&self.name, self.offset, length);
            self.taken = 0;
            if self.chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.offset += self.chunk.len() as u64;
        }
        let rest = &self.chunk[self.taken..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}
