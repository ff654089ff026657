//! Code that children share: single functions, and modules.
//!
//! Without it, a deployment only takes longer. What one guest could do to another through it is limited
//! by what the code is bound to: functions to the engine, and a module to the engine and to the digest of
//! what it was compiled from.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Store;
use crate::clock;
use crate::durable;
use guesthouse_artifact::open_regular;

/// The label that the MAC of functions is bound to, in place of an artifact's digest.
const FUNCTIONS_LABEL: &str = "functions";

/// A file of shared code and its MAC.
pub(super) struct SharedCode {
    code: PathBuf,
    mac: PathBuf,
    bound_to: Vec<String>,
}

impl Store {
    /// The cache of functions.
    pub(super) fn functions(&self) -> SharedCode {
        self.shared(FUNCTIONS_LABEL.to_owned(), "bin", vec![FUNCTIONS_LABEL.to_owned()])
    }

    pub(super) fn shared(
        &self,
        name: String,
        extension: &str,
        bound_to: Vec<String>,
    ) -> SharedCode {
        let path = |extension: &str| {
            self.compiled.join(format!("{name}-{}.{extension}", self.fingerprint))
        };
        SharedCode { code: path(extension), mac: path("mac"), bound_to }
    }

    /// Link the code to a path where a child may read it, if it exists and passes its MAC.
    pub(super) fn provide(&self, shared: &SharedCode, to: &Path) {
        let provide = || {
            match fs::hard_link(&shared.code, to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            let code = open_regular(to)?;
            if self.has_mac(&code, shared)? {
                touch(&code);
                return Ok(());
            }
            Err(io::Error::other("it does not pass its MAC"))
        };
        if let Err(error) = provide() {
            let file = shared.name();
            tracing::warn!(%file, %error, "shared code cannot be used, compiling again");
            // The link may not exist.
            let _ = fs::remove_file(to);
        }
    }

    /// Open the code if it exists and passes its MAC. Otherwise, remove it.
    pub(super) fn open_shared(&self, shared: &SharedCode) -> io::Result<Option<File>> {
        let code = match open_regular(&shared.code) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if self.has_mac(&code, shared)? {
            touch(&code);
            return Ok(Some(code));
        }
        let file = shared.name();
        tracing::warn!(%file, "shared code does not pass its MAC, compiling again");
        fs::remove_file(&shared.code)?;
        Ok(None)
    }

    fn has_mac(&self, code: &File, shared: &SharedCode) -> io::Result<bool> {
        let is = self.shared_mac(code, shared)?;
        let wanted = match fs::read(&shared.mac) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => blake3::Hash::from_hex(other?),
        };
        // BLAKE3 hashes are compared in constant time.
        Ok(wanted.is_ok_and(|wanted| wanted == is))
    }

    /// Store the code that a child has written. If this is interrupted, the MAC does not match and
    /// the code is not used.
    pub(super) fn adopt(&self, shared: &SharedCode, from: &Path) {
        let adopt = || {
            let code = match open_regular(from) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            let mac = self.shared_mac(&code, shared)?;
            durable::rename(from, &shared.code)?;
            let name = shared.mac.file_name().unwrap_or_default().to_string_lossy();
            durable::write_file(&self.compiled, &name, mac.to_hex().as_bytes())
        };
        if let Err(error) = adopt() {
            let file = shared.name();
            tracing::warn!(%file, %error, "shared code cannot be kept");
        }
    }

    fn shared_mac(&self, code: &File, shared: &SharedCode) -> io::Result<blake3::Hash> {
        let bound_to: Vec<_> = shared.bound_to.iter().map(String::as_str).collect();
        self.mac(code, &bound_to)
    }
}

impl SharedCode {
    pub(super) fn exists(&self) -> bool {
        self.code.exists() && self.mac.exists()
    }

    fn name(&self) -> String {
        self.code.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Record the use of a file for eviction in its modification time, which is otherwise unused
/// because files are never modified in place. If this fails, the file is only removed sooner.
pub(super) fn touch(code: &File) {
    if let Err(error) = code.set_modified(clock::now()) {
        tracing::warn!(%error, "cannot note that compiled code is used");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, report};
    use super::super::{CompileFiles, CompiledVersion, StoreError};
    use super::*;
    use guesthouse_artifact::Digest;

    fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        fs::write(path, bytes).map_err(StoreError::new("test"))
    }

    /// What a child finds of functions and of a module; it writes the functions, and the module if it
    /// is not there.
    fn provided(store: &Store, module: Digest) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let mut provided = (None, None);
        let make = |files: &CompileFiles| {
            let known = files.modules.join(module.hex());
            provided = (fs::read(&files.functions).ok(), fs::read(&known).ok());
            write(&files.compiled, b"code")?;
            write(&files.functions_output, b"functions")?;
            if !known.exists() {
                fs::create_dir(&files.modules_output).map_err(StoreError::new("test"))?;
                write(&files.modules_output.join(module.hex()), b"module")?;
            }
            let modules = vec![module];
            Ok::<_, StoreError>(crate::preinit::PreinitReport { modules, ..report() })
        };
        let kept: CompiledVersion = store.keep(Digest::from_content(b"artifact"), make).unwrap();
        assert_eq!(kept.modules().len(), 1);
        provided
    }

    #[test]
    fn only_code_that_passes_its_mac_is_provided() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let module = Digest::from_content(b"module");
        let all = (Some(b"functions".to_vec()), Some(b"module".to_vec()));
        let provided = || provided(&store, module);
        assert_eq!(provided(), (None, None));
        assert_eq!(provided(), all);
        for shared in [store.functions(), store.shared_module(module)] {
            fs::remove_file(&shared.code).unwrap();
            fs::write(&shared.code, b"evil").unwrap();
            assert_ne!(provided(), all);
            assert_eq!(provided(), all);
            fs::remove_file(&shared.mac).unwrap();
            assert_ne!(provided(), all);
            assert_eq!(provided(), all);
        }
    }

    #[test]
    fn a_module_is_only_provided_for_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let (one, two) = (Digest::from_content(b"one"), Digest::from_content(b"two"));
        assert_eq!(provided(&store, one).1, None);
        assert_eq!(provided(&store, two).1, None);
        let (one_code, two_code) = (store.shared_module(one), store.shared_module(two));
        fs::rename(&one_code.code, &two_code.code).unwrap();
        fs::rename(&one_code.mac, &two_code.mac).unwrap();
        assert_eq!(provided(&store, two).1, None);
        assert_eq!(provided(&store, two).1.as_deref(), Some(&b"module"[..]));
    }

    #[test]
    fn a_version_without_its_module_is_not_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let (artifact, module) = (Digest::from_content(b"artifact"), Digest::from_content(b"one"));
        provided(&store, module);
        let found = store.find(artifact, false).unwrap().unwrap();
        assert_eq!(found.modules().len(), 1);
        drop(found);
        fs::remove_file(store.shared_module(module).code).unwrap();
        assert!(store.find(artifact, false).unwrap().is_none());
    }

    #[test]
    fn a_module_in_use_is_the_one_that_was_checked() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let (artifact, module) = (Digest::from_content(b"artifact"), Digest::from_content(b"one"));
        provided(&store, module);
        let held = store.find(artifact, false).unwrap().unwrap();
        let path = store.shared_module(module).code;
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"evil").unwrap();
        let again = store.find(artifact, false).unwrap().unwrap();
        assert!(std::sync::Arc::ptr_eq(&held.modules()[0], &again.modules()[0]));
        // Children get files of the folder, and this one does not pass its MAC.
        assert_eq!(provided(&store, module).1, None);
        assert_eq!(provided(&store, module).1.as_deref(), Some(&b"module"[..]));
    }
}
