//! Code that children share: single functions, and the code on which `init` runs.
//!
//! Without it, a deployment only takes longer, so failures are logged and ignored. What one guest
//! could do to another through it is limited by what the code is bound to: functions to the engine,
//! and the code for `init` to the engine and to the component that it was compiled from.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Store;
use crate::clock;
use crate::durable;
use guesthouse_artifact::{Digest, open_regular};

/// The label that the MAC of functions is bound to, in place of an artifact's digest.
const FUNCTIONS_LABEL: &str = "functions";

/// The label for the code on which `init` runs; the component's digest follows.
const INIT_LABEL: &str = "init";

/// The most components whose code for `init` is kept: guests under development, rather than
/// versions. A guest with tract takes 80 MB.
const MAX_INIT_CODES: usize = 8;

/// The most bytes of code for `init`.
const MAX_INIT_BYTES: u64 = 1 << 30;

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

    /// The code for `init` of a component.
    pub(super) fn init_code(&self, component: Digest) -> SharedCode {
        let bound_to = vec![INIT_LABEL.to_owned(), component.to_string()];
        self.shared(format!("{INIT_LABEL}-{}", component.hex()), "cwasm", bound_to)
    }

    fn shared(&self, name: String, extension: &str, bound_to: Vec<String>) -> SharedCode {
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
            let is = self.shared_mac(&code, shared)?;
            let wanted = blake3::Hash::from_hex(fs::read(&shared.mac)?);
            if wanted.is_ok_and(|wanted| wanted == is) {
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

    /// Remove the least recently used code for `init` until the rest is within bounds.
    pub(super) fn evict_init_codes(&self) -> io::Result<()> {
        let (prefix, suffix) = (format!("{INIT_LABEL}-"), format!("-{}.cwasm", self.fingerprint));
        let mut codes = Vec::new();
        for entry in fs::read_dir(&self.compiled)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && name.ends_with(&suffix) {
                let metadata = entry.metadata()?;
                codes.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        codes.sort_by(|one, other| other.cmp(one));
        let mut bytes = 0;
        for (index, (_, length, code)) in codes.into_iter().enumerate() {
            bytes += length;
            if index >= MAX_INIT_CODES || bytes > MAX_INIT_BYTES {
                fs::remove_file(&code)?;
                // The MAC is useless without the code.
                let _ = fs::remove_file(code.with_extension("mac"));
            }
        }
        Ok(())
    }

    fn shared_mac(&self, code: &File, shared: &SharedCode) -> io::Result<blake3::Hash> {
        let bound_to: Vec<_> = shared.bound_to.iter().map(String::as_str).collect();
        self.mac(code, &bound_to)
    }
}

impl SharedCode {
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
    use std::time::{Duration, SystemTime};

    use super::super::tests::{open, report};
    use super::super::{CompileFiles, StoreError};
    use super::*;

    /// What a child gets of functions and code for `init`; it writes both each time.
    fn provided(store: &Store, component: Digest) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let mut provided = (None, None);
        let make = |files: &CompileFiles| {
            provided = (fs::read(&files.functions).ok(), fs::read(&files.init_code).ok());
            let write =
                |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(StoreError::new("test"));
            write(&files.compiled, b"code")?;
            write(&files.functions_output, b"functions")?;
            write(&files.init_code_output, b"init")?;
            Ok::<_, StoreError>(report())
        };
        store.keep(Digest::from_content(b"artifact"), component, make).unwrap();
        provided
    }

    #[test]
    fn only_code_that_passes_its_mac_is_provided() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let component = Digest::from_content(b"component");
        let all = (Some(b"functions".to_vec()), Some(b"init".to_vec()));
        let provided = || provided(&store, component);
        assert_eq!(provided(), (None, None));
        assert_eq!(provided(), all);
        for shared in [store.functions(), store.init_code(component)] {
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
    fn code_for_init_is_only_provided_for_its_component() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let (one, two) = (Digest::from_content(b"one"), Digest::from_content(b"two"));
        assert_eq!(provided(&store, one).1, None);
        assert_eq!(provided(&store, two).1, None);
        let (one_code, two_code) = (store.init_code(one), store.init_code(two));
        fs::rename(&one_code.code, &two_code.code).unwrap();
        fs::rename(&one_code.mac, &two_code.mac).unwrap();
        assert_eq!(provided(&store, two).1, None);
        assert_eq!(provided(&store, two).1.as_deref(), Some(&b"init"[..]));
    }

    #[test]
    fn the_least_recently_used_code_is_evicted_first() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let component = |index: usize| Digest::from_content(&index.to_le_bytes());
        for index in 0..=MAX_INIT_CODES {
            provided(&store, component(index));
            let age = Duration::from_secs(60 * (MAX_INIT_CODES - index) as u64);
            let time = SystemTime::now() - age;
            let code = File::open(store.init_code(component(index)).code).unwrap();
            code.set_modified(time).unwrap();
            // The first one is old, but used again.
            assert!(provided(&store, component(0)).1.is_some());
        }
        let there: Vec<_> = (0..=MAX_INIT_CODES)
            .filter(|index| store.init_code(component(*index)).code.exists())
            .collect();
        assert_eq!(there.len(), MAX_INIT_CODES);
        assert!(there.contains(&0) && !there.contains(&1));
        assert!(!store.init_code(component(1)).mac.exists());
    }
}
