//! The state folder: artifacts and compiled versions, content-addressed, the latter under a MAC.
//!
//! Compiled versions are native code, so they are only loaded if this host wrote them: a key that
//! never leaves the folder (mode 0600) authenticates the code together with the artifact, the
//! engine and the signature that it belongs to. Files are written under a temporary name, synced
//! and renamed, and never modified in place, because they stay mapped while they serve.
//!
//! ```text
//! lock                                    held by the host that uses the folder
//! key                                     32 random bytes
//! compiled/<artifact>-<engine>.cwasm      native code
//! compiled/<artifact>-<engine>.json       its record: written last, so it is there or it is not
//! compiled/module-<digest>-<engine>.cwasm     native code that versions of one guest import
//! compiled/module-<digest>-<engine>.mac       over it
//! compiled/functions-<engine>.bin         single functions, for versions that share code
//! compiled/functions-<engine>.mac         over them
//! artifacts/<artifact>.wasm               what was deployed, as it came
//! ledger.redb                             which versions are served, and every change of it: see `ledger`
//! ledger.head                             how far it has come, and which keys were revoked
//! ```

mod artifacts;
mod cleanup;
mod modules;
mod shared_code;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rand::TryRng;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::guest::CompiledModule;
use crate::preinit::{CompileFiles, PreinitReport};
use guesthouse_artifact::{Digest, open_regular};
use modules::LoadedModules;
use shared_code::touch;

const KEY_BYTES: usize = 32;

/// The prefix of temporary folders in which versions are compiled.
const SCRATCH_PREFIX: &str = ".new-";

/// The prefixes of unfinished files and folders: the above, and files that are about to be renamed.
const LEFTOVER_PREFIXES: [&str; 2] = [SCRATCH_PREFIX, ".tmp"];

/// The state folder of one host.
#[derive(Debug)]
pub struct Store {
    /// Two hosts in one folder would remove each other's temporary files. The kernel releases the
    /// lock when the process ends in any way.
    _lock: File,
    folder: PathBuf,
    artifacts: PathBuf,
    compiled: PathBuf,
    key: [u8; KEY_BYTES],
    fingerprint: String,
    /// Held while shared code is read or replaced: code and MAC are two files, and several children
    /// may run at once.
    sharing: Mutex<()>,
    modules: LoadedModules,
}

/// A compiled version that has passed its MAC.
#[derive(Debug)]
pub struct CompiledVersion {
    /// The file with the native code: the one that was checked, whatever file has its name now.
    code: File,
    /// The modules that it imports, checked likewise.
    modules: Vec<Arc<CompiledModule>>,
    /// The report of pre-initialisation.
    pub report: PreinitReport,
}

impl CompiledVersion {
    /// A path of the file that was checked, valid while this value lives. The file's own path would
    /// not do: between the check and the mapping, somebody who can write to the folder could
    /// replace the file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.code.as_raw_fd()))
    }

    /// The modules that the code imports, in the order of their imports.
    pub fn modules(&self) -> &[Arc<CompiledModule>] {
        &self.modules
    }
}

/// The record that accompanies the native code.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompiledRecord {
    /// The MAC over the code, the artifact's digest, the engine's fingerprint and the report.
    mac: String,
    report: PreinitReport,
}

/// An error of the state folder.
#[derive(Debug, thiserror::Error)]
#[error("use the state folder: {what}")]
pub struct StoreError {
    what: &'static str,
    #[source]
    source: io::Error,
}

impl StoreError {
    /// Whether the disk or the user's quota is full.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }

    /// Makes errors of one action on the state folder out of those of the system.
    pub fn new(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { what, source }
    }
}

impl Store {
    /// Open the state folder, or create it.
    ///
    /// # Errors
    /// The folder or its key cannot be read or created, is accessible to others, or is in use by
    /// another host.
    pub fn open(folder: &Path, fingerprint: String) -> Result<Self, StoreError> {
        let (artifacts, compiled) = (folder.join("artifacts"), folder.join("compiled"));
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for made in [&artifacts, &compiled] {
            builder.create(made).map_err(StoreError::new("cannot make the folder"))?;
        }
        // Anyone who can write to the folders can make this host run any code.
        let folders = [folder, &artifacts, &compiled].map(|path| (path, 0o022));
        let key = folder.join("key");
        let checked =
            check_private(&folders.into_iter().chain([(&*key, 0o077)]).collect::<Vec<_>>());
        checked.map_err(StoreError::new("cannot trust the folder"))?;
        let lock = lock(folder).map_err(StoreError::new("cannot lock the folder"))?;
        for tidied in [folder, &artifacts, &compiled] {
            remove_leftovers(tidied).map_err(StoreError::new("cannot tidy the folder"))?;
        }
        let key =
            read_or_make_key(folder).map_err(StoreError::new("cannot read or make the key"))?;
        let folder = folder.to_owned();
        let (sharing, modules) = (Mutex::new(()), LoadedModules::default());
        Ok(Self { _lock: lock, folder, artifacts, compiled, key, fingerprint, sharing, modules })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Find the compiled code of an artifact for this engine, in whose `init` arithmetic was granted
    /// or not: the answer is part of the snapshot.
    ///
    /// # Errors
    /// The file exists but cannot be read. A file that does not pass its MAC is logged and treated
    /// as absent.
    pub fn find(
        &self,
        artifact: Digest,
        arithmetic: bool,
    ) -> Result<Option<CompiledVersion>, StoreError> {
        let record = match fs::read(self.path(artifact, "json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::new("cannot read a record"))?,
        };
        let Ok(record) = serde_json::from_slice::<CompiledRecord>(&record) else {
            tracing::warn!(%artifact, "the record of a compiled version is damaged, compiling again");
            return Ok(None);
        };
        let unreadable = StoreError::new("cannot read a compiled version");
        if record.report.arithmetic != arithmetic {
            tracing::info!(%artifact, "the grant of arithmetic has changed, compiling again");
            return Ok(None);
        }
        let code = match open_regular(&self.path(artifact, "cwasm")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(&unreadable)?,
        };
        let is = self.version_mac(&code, artifact, &record.report).map_err(&unreadable)?;
        // BLAKE3 hashes are compared in constant time.
        if blake3::Hash::from_hex(&record.mac).is_ok_and(|wanted| wanted == is) {
            let Some(modules) = self.modules(&record.report.modules).map_err(&unreadable)? else {
                tracing::info!(%artifact, "a module of a compiled version is gone, compiling again");
                return Ok(None);
            };
            touch(&code);
            return Ok(Some(CompiledVersion { code, modules, report: record.report }));
        }
        tracing::warn!(%artifact, "a compiled version does not pass its MAC, compiling again");
        Ok(None)
    }

    /// Call `make` to write the compiled code of an artifact, and keep it.
    ///
    /// # Errors
    /// The error of `make`, or [`StoreError`].
    pub fn keep<E: From<StoreError>>(
        &self,
        artifact: Digest,
        make: impl FnOnce(&CompileFiles) -> Result<PreinitReport, E>,
    ) -> Result<CompiledVersion, E> {
        // In the same folder, so that files can be renamed; it is removed if anything fails.
        let scratch = tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir_in(&self.compiled);
        let scratch = scratch.map_err(StoreError::new("cannot make a temporary folder"))?;
        let path = |name| scratch.path().join(name);
        let files = CompileFiles {
            compiled: path("compiled"),
            functions: path("functions"),
            functions_output: path("functions-output"),
            modules: path("modules"),
            modules_output: path("modules-output"),
        };
        let functions = self.functions();
        let sharing = || self.sharing.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let _sharing = sharing();
            self.provide(&functions, &files.functions);
            let provided = self.provide_modules(&files.modules);
            provided.map_err(StoreError::new("cannot provide compiled modules"))?;
        }
        let report = make(&files)?;
        let not_kept = StoreError::new("cannot keep a compiled version");
        let modules = {
            let _sharing = sharing();
            self.adopt(&functions, &files.functions_output);
            self.adopt_modules(&report.modules, &files.modules_output).map_err(&not_kept)?
        };
        // The record comes last, because it names the modules.
        let code = self.publish(&files.compiled, artifact, &report).map_err(&not_kept)?;
        Ok(CompiledVersion { code, modules, report })
    }

    fn publish(&self, made: &Path, artifact: Digest, report: &PreinitReport) -> io::Result<File> {
        let code = open_regular(made)?;
        let mac = self.version_mac(&code, artifact, report)?.to_hex().to_string();
        let to = self.path(artifact, "cwasm");
        durable::rename(made, &to)?;
        let record = serde_json::to_vec(&CompiledRecord { mac, report: report.clone() })?;
        let name = self.path(artifact, "json");
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        durable::write_file(&self.compiled, &name, &record)?;
        Ok(code)
    }

    fn version_mac(
        &self,
        code: &File,
        artifact: Digest,
        report: &PreinitReport,
    ) -> io::Result<blake3::Hash> {
        self.mac(code, &[&artifact.to_string(), &serde_json::to_string(report)?])
    }

    /// The MAC over the code, the engine's fingerprint and the other values that the code is bound
    /// to. Their lengths are included, so that values cannot run into each other, and no artifact's
    /// digest equals a label of shared code.
    fn mac(&self, code: &File, bound_to: &[&str]) -> io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in bound_to.iter().chain([&self.fingerprint.as_str()]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update_reader(code)?;
        Ok(hasher.finalize())
    }

    fn path(&self, artifact: Digest, extension: &str) -> PathBuf {
        self.compiled.join(format!("{}-{}.{extension}", artifact.hex(), self.fingerprint))
    }
}

/// The reports of an artifact, by the fingerprint of the engine that it was compiled for. This only
/// reads, and does not check MACs: it is for people to look at while a host runs.
///
/// # Errors
/// The state folder cannot be read.
pub fn reports(
    folder: &Path,
    artifact: Digest,
) -> Result<BTreeMap<String, PreinitReport>, StoreError> {
    let read = || -> io::Result<_> {
        let mut reports = BTreeMap::new();
        for entry in fs::read_dir(folder.join("compiled"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let engine = name
                .strip_prefix(&artifact.hex())
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|rest| rest.strip_suffix(".json"));
            let Some(engine) = engine else { continue };
            // A damaged record is skipped; the host will compile the artifact again.
            if let Ok(CompiledRecord { report, .. }) = serde_json::from_slice(&fs::read(&path)?) {
                reports.insert(engine.to_owned(), report);
            }
        }
        Ok(reports)
    };
    read().map_err(StoreError::new("cannot read the reports of compiled versions"))
}

/// Check that the paths belong to the user of this process and deny others these permissions. The
/// error names all paths that fail, and the command that fixes them: a volume's `fsGroup`, for
/// example, widens everything at once. Absent paths pass.
fn check_private(paths: &[(&Path, u32)]) -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    let (mut foreign, mut open) = (Vec::new(), Vec::new());
    for (path, denied) in paths {
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let mode = metadata.permissions().mode();
        if metadata.uid() != user {
            foreign.push((quoted(path), format!("user {}", metadata.uid())));
        } else if mode & denied != 0 {
            open.push((quoted(path), format!("mode {:04o}", mode & 0o7777)));
        }
    }
    let list = |found: &[(String, String)]| {
        let each: Vec<_> = found.iter().map(|(path, what)| format!("{path} ({what})")).collect();
        let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
        (each.join(", "), paths.join(" "))
    };
    if !foreign.is_empty() {
        let (each, paths) = list(&foreign);
        return Err(io::Error::other(format!(
            "another user than the one that this process runs as owns {each}; to change that: chown -R {user} {paths}"
        )));
    }
    if !open.is_empty() {
        let (each, paths) = list(&open);
        return Err(io::Error::other(format!(
            "others than the owner have access to {each}; to take it away: chmod go-rwx {paths}"
        )));
    }
    Ok(())
}

/// Quote a path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte);
    if text.bytes().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Lock the folder. The file is never removed, because a new file would be a different lock.
fn lock(folder: &Path) -> io::Result<File> {
    let path = folder.join("lock");
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another host uses it")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Remove the temporary files of a host that was killed.
fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if !LEFTOVER_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes())) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn read_or_make_key(folder: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = folder.join("key");
    let mut key = [0; KEY_BYTES];
    match open_regular(&path) {
        Ok(mut file) => {
            file.read_exact(&mut key)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            rand::rngs::SysRng.try_fill_bytes(&mut key).map_err(io::Error::other)?;
            // Temporary files are readable by their owner only.
            durable::write_file(folder, "key", &key)?;
        }
        Err(error) => return Err(error),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preinit::InstanceStart;
    use guesthouse_model::Signature;

    pub(super) fn report() -> PreinitReport {
        let signature = Signature { inputs: vec![], outputs: vec![], max_batch_size: 1 };
        let start = InstanceStart::Snapshot;
        PreinitReport {
            signature,
            start,
            arithmetic: false,
            modules: vec![],
            fingerprint: None,
            steps_ms: vec![],
            peak_memory_bytes: 0,
        }
    }

    pub(super) fn keep(store: &Store, artifact: Digest, code: &[u8]) -> CompiledVersion {
        let write = |files: &CompileFiles| {
            fs::write(&files.compiled, code).map_err(StoreError::new("test"))?;
            Ok::<_, StoreError>(report())
        };
        store.keep(artifact, write).unwrap()
    }

    pub(super) fn open(folder: &Path, fingerprint: &str) -> Store {
        Store::open(folder, fingerprint.to_owned()).unwrap()
    }

    #[test]
    fn code_of_another_grant_of_arithmetic_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let one = Digest::from_content(b"one");
        keep(&store, one, b"code");
        assert!(store.find(one, true).unwrap().is_none());
        assert!(store.find(one, false).unwrap().is_some());
    }

    #[test]
    fn a_report_without_arithmetic_is_written_as_before() {
        // The MAC of records that older releases wrote covers this text.
        let text = serde_json::to_string(&report()).unwrap();
        assert!(!text.contains("arithmetic"), "{text}");
        assert_eq!(serde_json::from_str::<PreinitReport>(&text).unwrap(), report());
        let granted = PreinitReport { arithmetic: true, ..report() };
        assert!(serde_json::to_string(&granted).unwrap().contains("\"arithmetic\":true"));
    }

    #[test]
    fn only_code_of_this_host_artifact_and_engine_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let (one, two) = (Digest::from_content(b"one"), Digest::from_content(b"two"));
        assert!(store.find(one, false).unwrap().is_none());
        keep(&store, one, b"code");
        drop(store);
        let other_engine = open(folder.path(), "other");
        assert!(other_engine.find(one, false).unwrap().is_none());
        drop(other_engine);
        let store = open(folder.path(), "engine");
        assert!(store.find(one, false).unwrap().is_some());
        assert!(store.find(two, false).unwrap().is_none());

        // The code of another artifact under this artifact's name.
        let path = store.path(one, "cwasm");
        fs::copy(&path, store.path(two, "cwasm")).unwrap();
        fs::copy(store.path(one, "json"), store.path(two, "json")).unwrap();
        assert!(store.find(two, false).unwrap().is_none());
        // Other code, and other code with a record under another key.
        fs::write(&path, b"evil").unwrap();
        assert!(store.find(one, false).unwrap().is_none());
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = open(elsewhere.path(), "engine");
        keep(&foreign, one, b"evil");
        fs::copy(foreign.path(one, "json"), store.path(one, "json")).unwrap();
        assert!(store.find(one, false).unwrap().is_none());
        // A damaged record, and one whose code is gone.
        fs::write(store.path(one, "json"), b"{").unwrap();
        assert!(store.find(one, false).unwrap().is_none());
        keep(&store, one, b"code");
        fs::remove_file(&path).unwrap();
        assert!(store.find(one, false).unwrap().is_none());
    }

    #[test]
    fn the_checked_file_is_the_one_that_is_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let artifact = Digest::from_content(b"one");
        let kept = keep(&store, artifact, b"code");
        let found = store.find(artifact, false).unwrap().unwrap();
        // Another file takes its name after the check.
        let evil = folder.path().join("evil");
        fs::write(&evil, b"evil").unwrap();
        fs::rename(&evil, store.path(artifact, "cwasm")).unwrap();
        for compiled in [kept, found] {
            assert_eq!(fs::read(compiled.path()).unwrap(), b"code");
        }
    }

    #[test]
    fn a_folder_or_key_accessible_to_others_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), "engine"));
        let compiled = folder.path().join("compiled");
        let key = folder.path().join("key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        for (path, bad) in [(folder.path(), 0o770), (&compiled, 0o702), (&key, 0o640)] {
            let good = fs::metadata(path).unwrap().permissions();
            fs::set_permissions(path, fs::Permissions::from_mode(bad)).unwrap();
            let error = Store::open(folder.path(), "engine".to_owned()).unwrap_err();
            let reason = error.source.to_string();
            let named = format!("{} (mode {bad:04o})", path.display());
            let mends = format!("chmod go-rwx {}", path.display());
            assert!(reason.contains(&named) && reason.ends_with(&mends), "{reason}");
            fs::set_permissions(path, good).unwrap();
        }
        drop(open(folder.path(), "engine"));
        let root_is_another = rustix::process::geteuid().as_raw() != 0;
        assert_eq!(check_private(&[(Path::new("/"), 0)]).is_err(), root_is_another);
        assert!(check_private(&[(&folder.path().join("absent"), 0o077)]).is_ok());
    }

    #[test]
    fn a_folder_cannot_be_used_by_two_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), "engine");
        let scratch = first.compiled.join(format!("{SCRATCH_PREFIX}1"));
        fs::create_dir(&scratch).unwrap();
        let second = Store::open(folder.path(), "engine".to_owned()).unwrap_err();
        assert!(second.source.to_string().contains("another host uses it"));
        assert!(scratch.exists(), "a second host removes no files of the first one");
        drop(first);
        drop(open(folder.path(), "engine"));
        assert!(!scratch.exists());
    }

    #[test]
    fn files_of_a_killed_host_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let left = store.compiled.join(format!("{SCRATCH_PREFIX}1"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("compiled"), b"half").unwrap();
        let files = [store.compiled.join(".tmpAbC123"), folder.path().join(".tmpAbC123")];
        files.iter().for_each(|file| fs::write(file, b"half").unwrap());
        keep(&store, Digest::from_content(b"one"), b"code");
        drop(store);
        let again = open(folder.path(), "engine");
        assert!(!left.exists() && !files.iter().any(|file| file.exists()));
        assert!(again.find(Digest::from_content(b"one"), false).unwrap().is_some());
    }

    #[test]
    fn a_failed_compilation_leaves_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let fail = |files: &CompileFiles| {
            fs::write(&files.compiled, b"half").map_err(StoreError::new("test"))?;
            fs::write(&files.functions_output, b"half").map_err(StoreError::new("test"))?;
            Err(StoreError { what: "test", source: io::Error::other("no") })
        };
        assert!(store.keep(Digest::from_content(b"one"), fail).is_err());
        assert_eq!(fs::read_dir(&store.compiled).unwrap().count(), 0);
    }
}
