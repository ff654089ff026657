//! Compiled modules that versions of one guest share.
//!
//! Each is a file under a MAC that binds it to the digest of the module. It is checked when the first
//! version that imports it is loaded, and stays open and mapped until the last one is dropped. It is
//! kept on disk as long as the record of any version names it.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use guesthouse_artifact::Digest;

use super::shared_code::SharedCode;
use super::{CompiledRecord, Store};
use crate::guest::CompiledModule;

/// The label that the MAC of a module is bound to, followed by its digest.
const LABEL: &str = "module";

/// The modules that are in use: checked, open and mapped.
#[derive(Debug, Default)]
pub(super) struct LoadedModules(Mutex<HashMap<Digest, Weak<CompiledModule>>>);

impl Store {
    /// Open these modules; `None` if one does not exist or does not pass its MAC, after which it does
    /// not exist.
    pub(super) fn modules(
        &self,
        digests: &[Digest],
    ) -> io::Result<Option<Vec<Arc<CompiledModule>>>> {
        let mut modules = Vec::with_capacity(digests.len());
        for digest in digests {
            match self.module(*digest)? {
                Some(module) => modules.push(module),
                None => return Ok(None),
            }
        }
        Ok(Some(modules))
    }

    /// Keep the modules that a child has compiled, and open all that it names.
    pub(super) fn adopt_modules(
        &self,
        digests: &[Digest],
        from: &Path,
    ) -> io::Result<Vec<Arc<CompiledModule>>> {
        for digest in digests {
            let shared = self.shared_module(*digest);
            // Another child may have compiled it at the same time: files never change.
            if !shared.exists() {
                self.adopt(&shared, &from.join(digest.hex()));
            }
        }
        let modules = self.modules(digests)?;
        modules.ok_or_else(|| io::Error::other("a module that it imports is missing or damaged"))
    }

    /// Link all modules that pass their MAC into a new folder, where a child may read them, by their
    /// digest. Others are removed, so that the child compiles them again.
    pub(super) fn provide_modules(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir(folder)?;
        let suffix = format!("-{}.cwasm", self.fingerprint);
        for entry in fs::read_dir(&self.compiled)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let digest = name
                .strip_prefix(LABEL)
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|rest| rest.strip_suffix(&suffix))
                .and_then(|hex| Digest::try_from(format!("sha256:{hex}")).ok());
            let Some(digest) = digest else { continue };
            let link = folder.join(digest.hex());
            if !self.link_module(digest, &link)? {
                // What has its name is not the file that is in use, so it has to be checked.
                self.loaded().remove(&digest);
                self.link_module(digest, &link)?;
            }
        }
        Ok(())
    }

    /// Link the file that was checked. Returns `false` if it has been removed from the folder since then.
    fn link_module(&self, digest: Digest, to: &Path) -> io::Result<bool> {
        let Some(module) = self.module(digest)? else { return Ok(true) };
        match module.link(to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn module(&self, digest: Digest) -> io::Result<Option<Arc<CompiledModule>>> {
        let mut loaded = self.loaded();
        if let Some(module) = loaded.get(&digest).and_then(Weak::upgrade) {
            return Ok(Some(module));
        }
        let shared = self.shared_module(digest);
        let Some(file) = self.open_shared(&shared)? else {
            loaded.remove(&digest);
            return Ok(None);
        };
        // SAFETY: the file has just passed its MAC, and its folder is this host's alone, which never
        // changes a file in place.
        #[expect(unsafe_code, reason = "native code that only the MAC vouches for")]
        let module = Arc::new(unsafe { CompiledModule::new(file) });
        loaded.insert(digest, Arc::downgrade(&module));
        Ok(Some(module))
    }

    pub(super) fn shared_module(&self, digest: Digest) -> SharedCode {
        let bound_to = vec![LABEL.to_owned(), digest.to_string()];
        self.shared(format!("{LABEL}-{}", digest.hex()), "cwasm", bound_to)
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Weak<CompiledModule>>> {
        self.modules.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stems of the files with the modules that the record of a version names, for this engine. A record
/// that cannot be read names none: the version is compiled again.
pub(super) fn imported(record: &Path, engine: &str) -> BTreeSet<String> {
    let record = fs::read(record).ok();
    let record = record.and_then(|text| serde_json::from_slice::<CompiledRecord>(&text).ok());
    let modules = record.map(|record| record.report.modules).unwrap_or_default();
    modules.iter().map(|module| format!("{LABEL}-{}-{engine}", module.hex())).collect()
}
