//! Compiled functions, kept from one child to the next: versions that share code compile only what
//! differs.
//!
//! The file is native code like the compiled versions themselves, so `store` keeps it under a MAC
//! and a child is only given one that this host's children wrote. The format is plain: key and
//! value after value, each after its length as a little-endian u32.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use wasmtime::CacheStore;

/// The most bytes that are kept: a few guests with tract, each with two sets of functions. What the
/// last compilation did not use goes first.
const MAX_KEPT_BYTES: usize = 512 << 20;

/// Functions by Cranelift's key.
#[derive(Debug, Default)]
pub(super) struct FunctionCache(Mutex<HashMap<Vec<u8>, Function>>);

#[derive(Debug)]
struct Function {
    code: Vec<u8>,
    used: bool,
}

impl FunctionCache {
    /// The functions in a file; none if there is no file, which is how every cache begins.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        let (mut functions, mut rest) = (HashMap::new(), bytes.as_slice());
        while !rest.is_empty() {
            let (key, code) = (read_part(&mut rest)?, read_part(&mut rest)?);
            functions.insert(key, Function { code, used: false });
        }
        Ok(Self(Mutex::new(functions)))
    }

    /// Write what was used, and of the rest what fits.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let functions = self.lock();
        let mut kept: Vec<_> = functions.iter().collect();
        kept.sort_by_key(|(key, function)| (!function.used, key.as_slice()));
        let mut file = BufWriter::new(std::fs::File::create_new(path)?);
        let mut bytes = 0;
        for (key, function) in kept {
            bytes += key.len() + function.code.len();
            if bytes > MAX_KEPT_BYTES {
                break;
            }
            write_part(&mut file, key)?;
            write_part(&mut file, &function.code)?;
        }
        file.into_inner()?.sync_all()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Function>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheStore for FunctionCache {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        let mut functions = self.lock();
        let function = functions.get_mut(key)?;
        function.used = true;
        Some(Cow::Owned(function.code.clone()))
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        self.lock().insert(key.to_vec(), Function { code: value, used: true });
        true
    }
}

fn read_part(rest: &mut &[u8]) -> io::Result<Vec<u8>> {
    let mut length = [0; size_of::<u32>()];
    rest.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    let (part, after) = rest.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
    *rest = after;
    Ok(part.to_vec())
}

fn write_part(file: &mut impl Write, part: &[u8]) -> io::Result<()> {
    let length = u32::try_from(part.len()).map_err(io::Error::other)?;
    file.write_all(&length.to_le_bytes())?;
    file.write_all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("functions");
        let cache = FunctionCache::read(&path).unwrap();
        assert!(cache.get(b"a").is_none());
        assert!(cache.insert(b"a", b"code".to_vec()) && cache.insert(b"b", vec![]));
        cache.write(&path).unwrap();
        let again = FunctionCache::read(&path).unwrap();
        assert_eq!(again.get(b"a").as_deref(), Some(&b"code"[..]));
        assert_eq!(again.get(b"b").as_deref(), Some(&b""[..]));
        assert!(again.get(b"c").is_none());
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("functions");
        let cache = FunctionCache::default();
        cache.insert(b"a", b"code".to_vec());
        cache.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 1..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(FunctionCache::read(&path).is_err(), "{length}");
        }
    }
}
