//! The state folder: compiled versions, content-addressed, each under a MAC.
//!
//! A compiled form is native code, so a file is only loaded if this host wrote it: a key that never
//! leaves the folder (mode 0600) authenticates the code together with the artifact, the engine and
//! the signature that it belongs to. Files are written under a temporary name, synced and renamed,
//! and never changed in place, because they stay mapped while they serve.
//!
//! ```text
//! key                                     32 random bytes
//! compiled/<artifact>-<engine>.cwasm      native code
//! compiled/<artifact>-<engine>.json       its record: written last, so it is there or it is not
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::TryRng;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::artifact::Digest;
use crate::preinit::PreinitReport;

const KEY_BYTES: usize = 32;

/// Begins the name of a folder in which a version is being compiled.
const SCRATCH_PREFIX: &str = ".new-";

/// The state folder of one host.
#[derive(Debug)]
pub struct Store {
    compiled: PathBuf,
    key: [u8; KEY_BYTES],
    fingerprint: String,
}

/// A compiled version in the store, checked against its MAC.
#[derive(Debug)]
pub struct CompiledVersion {
    /// The native code.
    pub path: PathBuf,
    /// What pre-initialising found out.
    pub report: PreinitReport,
}

/// What stands beside the native code.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Over the code, the artifact's digest, the engine's fingerprint and the report.
    mac: String,
    report: PreinitReport,
}

/// The state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("use the state folder: {what}")]
pub struct StoreError {
    what: &'static str,
    #[source]
    source: io::Error,
}

impl StoreError {
    fn new(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { what, source }
    }
}

impl Store {
    /// Open the state folder, or make it.
    ///
    /// # Errors
    /// The folder or its key cannot be read or made.
    pub fn open(folder: &Path, fingerprint: String) -> Result<Self, StoreError> {
        let compiled = folder.join("compiled");
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&compiled).map_err(StoreError::new("cannot make the folder"))?;
        check_private(folder).map_err(StoreError::new("cannot trust the folder"))?;
        remove_leftovers(&compiled).map_err(StoreError::new("cannot tidy the folder"))?;
        let key =
            read_or_make_key(folder).map_err(StoreError::new("cannot read or make the key"))?;
        Ok(Self { compiled, key, fingerprint })
    }

    /// The compiled form of an artifact, if it is there and it is ours.
    ///
    /// # Errors
    /// It is there, but cannot be read. One that does not pass its MAC counts as not there; the
    /// log says so.
    pub fn find(&self, artifact: Digest) -> Result<Option<CompiledVersion>, StoreError> {
        let record = match fs::read(self.path(artifact, "json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::new("cannot read a record"))?,
        };
        let path = self.path(artifact, "cwasm");
        let Ok(record) = serde_json::from_slice::<Record>(&record) else {
            tracing::warn!(%artifact, "the record of a compiled version is damaged, compiling anew");
            return Ok(None);
        };
        let is = match self.mac(&path, artifact, &record.report) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::new("cannot read a compiled version"))?,
        };
        // Comparing hashes takes the same time wherever they differ.
        if blake3::Hash::from_hex(&record.mac).is_ok_and(|wanted| wanted == is) {
            return Ok(Some(CompiledVersion { path, report: record.report }));
        }
        tracing::warn!(%artifact, "a compiled version does not pass its MAC, compiling anew");
        Ok(None)
    }

    /// Let `make` write the compiled form of an artifact into a file, and keep it.
    ///
    /// # Errors
    /// What `make` says, or the state folder.
    pub fn keep<E: From<StoreError>>(
        &self,
        artifact: Digest,
        make: impl FnOnce(&Path) -> Result<PreinitReport, E>,
    ) -> Result<CompiledVersion, E> {
        // In the same folder, so that it can be renamed; removed again if anything fails.
        let scratch = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir_in(&self.compiled);
        let scratch = scratch.map_err(StoreError::new("cannot make a temporary folder"))?;
        let made = scratch.path().join("compiled");
        let report = make(&made)?;
        let path = self.path(artifact, "cwasm");
        self.publish(&made, &path, artifact, &report)
            .map_err(StoreError::new("cannot keep a compiled version"))?;
        Ok(CompiledVersion { path, report })
    }

    fn publish(
        &self,
        made: &Path,
        path: &Path,
        artifact: Digest,
        report: &PreinitReport,
    ) -> io::Result<()> {
        let mac = self.mac(made, artifact, report)?.to_hex().to_string();
        fs::rename(made, path)?;
        let mut record = NamedTempFile::new_in(&self.compiled)?;
        serde_json::to_writer(&mut record, &Record { mac, report: report.clone() })?;
        record.as_file().sync_all()?;
        record.persist(self.path(artifact, "json"))?;
        File::open(&self.compiled)?.sync_all()
    }

    /// The MAC over the code and all that it is bound to; lengths keep the parts apart.
    fn mac(
        &self,
        code: &Path,
        artifact: Digest,
        report: &PreinitReport,
    ) -> io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [artifact.to_string(), self.fingerprint.clone(), serde_json::to_string(report)?]
        {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update_reader(File::open(code)?)?;
        Ok(hasher.finalize())
    }

    fn path(&self, artifact: Digest, extension: &str) -> PathBuf {
        self.compiled.join(format!("{}-{}.{extension}", artifact.hex(), self.fingerprint))
    }
}

/// Whoever can write here can make this host run anything.
fn check_private(folder: &Path) -> io::Result<()> {
    for folder in [folder, &folder.join("compiled")] {
        if fs::metadata(folder)?.permissions().mode() & 0o022 != 0 {
            return Err(io::Error::other("others than its owner can write to it"));
        }
    }
    Ok(())
}

/// What a host that was killed while compiling has left.
fn remove_leftovers(compiled: &Path) -> io::Result<()> {
    for entry in fs::read_dir(compiled)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(SCRATCH_PREFIX.as_bytes()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn read_or_make_key(folder: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = folder.join("key");
    let mut key = [0; KEY_BYTES];
    match File::open(&path) {
        Ok(mut file) => file.read_exact(&mut key)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            rand::rngs::SysRng.try_fill_bytes(&mut key).map_err(io::Error::other)?;
            let mut new = tempfile::Builder::new().make_in(folder, |path| {
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
            })?;
            new.write_all(&key)?;
            new.as_file().sync_all()?;
            match new.persist_noclobber(&path) {
                Ok(_) => File::open(folder)?.sync_all()?,
                // Another host on the same folder was first: its key counts.
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                    File::open(&path)?.read_exact(&mut key)?;
                }
                Err(error) => return Err(error.error),
            }
        }
        Err(error) => return Err(error),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Signature;

    fn report() -> PreinitReport {
        let signature = Signature { inputs: vec![], outputs: vec![], max_batch_size: 1 };
        PreinitReport { signature, fingerprint: None, steps_ms: vec![], peak_memory_bytes: 0 }
    }

    fn keep(store: &Store, artifact: Digest, code: &[u8]) -> CompiledVersion {
        let write = |path: &Path| {
            fs::write(path, code).map_err(StoreError::new("test"))?;
            Ok::<_, StoreError>(report())
        };
        store.keep(artifact, write).unwrap()
    }

    #[test]
    fn only_what_this_host_wrote_for_this_artifact_and_engine_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "engine".to_owned()).unwrap();
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        assert!(store.find(one).unwrap().is_none());
        let path = keep(&store, one, b"code").path;
        let again = Store::open(folder.path(), "engine".to_owned()).unwrap();
        assert_eq!(again.find(one).unwrap().unwrap().path, path);
        assert!(again.find(two).unwrap().is_none());
        let other_engine = Store::open(folder.path(), "other".to_owned()).unwrap();
        assert!(other_engine.find(one).unwrap().is_none());

        // Another artifact's code under this artifact's name.
        fs::copy(&path, store.path(two, "cwasm")).unwrap();
        fs::copy(store.path(one, "json"), store.path(two, "json")).unwrap();
        assert!(store.find(two).unwrap().is_none());
        // Other code, and other code with a record of another key.
        fs::write(&path, b"evil").unwrap();
        assert!(store.find(one).unwrap().is_none());
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = Store::open(elsewhere.path(), "engine".to_owned()).unwrap();
        keep(&foreign, one, b"evil");
        fs::copy(foreign.path(one, "json"), store.path(one, "json")).unwrap();
        assert!(store.find(one).unwrap().is_none());
        // A damaged record, and one whose code is gone.
        fs::write(store.path(one, "json"), b"{").unwrap();
        assert!(store.find(one).unwrap().is_none());
        keep(&store, one, b"code");
        fs::remove_file(&path).unwrap();
        assert!(store.find(one).unwrap().is_none());
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Store::open(folder.path(), "engine".to_owned()).is_err());
    }

    #[test]
    fn what_a_killed_host_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "engine".to_owned()).unwrap();
        let left = store.compiled.join(format!("{SCRATCH_PREFIX}1"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("compiled"), b"half").unwrap();
        keep(&store, Digest::of(b"one"), b"code");
        let again = Store::open(folder.path(), "engine".to_owned()).unwrap();
        assert!(!left.exists() && again.find(Digest::of(b"one")).unwrap().is_some());
    }

    #[test]
    fn what_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "engine".to_owned()).unwrap();
        let fail = |path: &Path| {
            fs::write(path, b"half").map_err(StoreError::new("test"))?;
            Err(StoreError { what: "test", source: io::Error::other("no") })
        };
        assert!(store.keep(Digest::of(b"one"), fail).is_err());
        assert_eq!(fs::read_dir(&store.compiled).unwrap().count(), 0);
    }
}
