//! The cache of compiled functions: versions that share code compile only the functions that
//! differ.
//!
//! The file contains native code, like the compiled versions, so `store` keeps it under a MAC and
//! only gives children a file that this host's children wrote. It is a sequence of keys and values,
//! each preceded by its length as a little-endian u32. Values are used in place: tens of thousands
//! of them are looked up by several threads, and most are used.
//!
//! Cranelift's keys are not fully stable: depending on what else its thread has compiled, one
//! function in ten has a different key the next time (it hashes exception tables that the previous
//! function has left). So a version that shares all of its code with another one still misses some
//! functions, which is no reason to write the file again.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wasmtime::CacheStore;

/// The maximum size of the cache, in bytes: a few guests with tract. Functions that the last
/// compilation did not use are evicted first.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// The file is written again if at least one in this many bytes of the used functions is new: more
/// than the unstable keys cause, and less than any other guest adds.
const WORTH_WRITING: usize = 4;

/// Cranelift's keys are SHA-256.
type Key = [u8; 32];

/// The compiled functions by Cranelift's key.
#[derive(Debug, Default)]
pub(super) struct FunctionCache {
    bytes: Vec<u8>,
    /// The functions that were read, as ranges of `bytes`.
    read: HashMap<Key, CachedFunction>,
    /// The functions that were compiled since.
    new: Mutex<HashMap<Key, Vec<u8>>>,
}

#[derive(Debug)]
struct CachedFunction {
    code: Range<usize>,
    used: AtomicBool,
}

impl FunctionCache {
    /// Read the functions of a file; an absent file is an empty cache.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        let (mut read, mut position) = (HashMap::new(), 0);
        while position < bytes.len() {
            let key = read_part(&bytes, &mut position)?;
            let key = bytes[key].try_into().map_err(io::Error::other)?;
            let code = read_part(&bytes, &mut position)?;
            read.insert(key, CachedFunction { code, used: AtomicBool::new(false) });
        }
        Ok(Self { bytes, read, new: Mutex::default() })
    }

    /// Whether enough functions are new for the file to be written again.
    pub(super) fn is_worth_writing(&self) -> bool {
        let new: usize = self.lock().values().map(Vec::len).sum();
        let read = self.read.values().filter(|function| function.is_used());
        let read: usize = read.map(|function| function.code.len()).sum();
        new > (new + read) / WORTH_WRITING
    }

    /// Write the used functions, and as many of the others as fit.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let new = self.lock();
        let mut kept: Vec<_> = new.iter().map(|(key, code)| (true, key, &code[..])).collect();
        kept.extend(
            self.read.iter().map(|(key, function)| {
                (function.is_used(), key, &self.bytes[function.code.clone()])
            }),
        );
        kept.sort_by_key(|(used, key, _)| (!used, *key));
        let mut file = BufWriter::new(std::fs::File::create_new(path)?);
        let mut bytes = 0;
        for (_, key, code) in kept {
            bytes += key.len() + code.len();
            if bytes > MAX_KEPT_BYTES {
                break;
            }
            write_part(&mut file, key)?;
            write_part(&mut file, code)?;
        }
        file.into_inner()?.sync_all()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<u8>>> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CachedFunction {
    fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

impl CacheStore for FunctionCache {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        let key: &Key = key.try_into().ok()?;
        if let Some(function) = self.read.get(key) {
            function.used.store(true, Ordering::Relaxed);
            return Some(Cow::Borrowed(&self.bytes[function.code.clone()]));
        }
        self.lock().get(key).map(|code| Cow::Owned(code.clone()))
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        let Ok(key) = key.try_into() else { return false };
        self.lock().insert(key, value);
        true
    }
}

fn read_part(bytes: &[u8], position: &mut usize) -> io::Result<Range<usize>> {
    let mut rest = bytes.get(*position..).unwrap_or_default();
    let mut length = [0; size_of::<u32>()];
    rest.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > rest.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let start = *position + size_of::<u32>();
    *position = start + length;
    Ok(start..*position)
}

fn write_part(file: &mut impl Write, part: &[u8]) -> io::Result<()> {
    let length = u32::try_from(part.len()).map_err(io::Error::other)?;
    file.write_all(&length.to_le_bytes())?;
    file.write_all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: u8) -> Key {
        [name; 32]
    }

    #[test]
    fn written_functions_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("functions");
        let cache = FunctionCache::read(&path).unwrap();
        assert!(cache.get(&key(1)).is_none());
        assert!(cache.insert(&key(1), b"code".to_vec()) && cache.insert(&key(2), vec![]));
        assert_eq!(cache.get(&key(1)).as_deref(), Some(&b"code"[..]));
        assert!(!cache.insert(b"not one of Cranelift's", vec![]));
        cache.write(&path).unwrap();
        let again = FunctionCache::read(&path).unwrap();
        assert_eq!(again.get(&key(1)).as_deref(), Some(&b"code"[..]));
        assert_eq!(again.get(&key(2)).as_deref(), Some(&b""[..]));
        assert!(again.get(&key(3)).is_none());
    }

    #[test]
    fn read_functions_are_written_with_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let first = FunctionCache::default();
        first.insert(&key(1), b"one".to_vec());
        first.write(&path("first")).unwrap();
        let second = FunctionCache::read(&path("first")).unwrap();
        second.insert(&key(2), b"two".to_vec());
        second.write(&path("second")).unwrap();
        let third = FunctionCache::read(&path("second")).unwrap();
        assert_eq!(third.get(&key(1)).as_deref(), Some(&b"one"[..]));
        assert_eq!(third.get(&key(2)).as_deref(), Some(&b"two"[..]));
    }

    #[test]
    fn a_few_new_functions_are_not_worth_writing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("functions");
        let cache = FunctionCache::default();
        assert!(!cache.is_worth_writing());
        (0..20).for_each(|name| {
            cache.insert(&key(name), vec![0; 100]);
        });
        assert!(cache.is_worth_writing());
        cache.write(&path).unwrap();
        let same_guest = FunctionCache::read(&path).unwrap();
        assert!((0..20).all(|name| same_guest.get(&key(name)).is_some()));
        same_guest.insert(&key(20), vec![0; 200]);
        assert!(!same_guest.is_worth_writing());
        let other_guest = FunctionCache::read(&path).unwrap();
        other_guest.insert(&key(20), vec![0; 200]);
        assert!(other_guest.is_worth_writing());
    }

    #[test]
    fn a_truncated_file_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("functions");
        let cache = FunctionCache::default();
        cache.insert(&key(1), b"code".to_vec());
        cache.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 1..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(FunctionCache::read(&path).is_err(), "{length}");
        }
    }
}
