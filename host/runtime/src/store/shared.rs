//! What children leave for other children: single functions, and the code on which `init` runs.
//!
//! Without it a deploy only takes longer, so nothing here is an error. What one guest could do to
//! another through it is bounded by what it is bound to: functions to the engine, the code for
//! `init` to the engine and to the component that it was compiled from.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Store;
use crate::clock;
use crate::durable;
use guesthouse_artifact::{Digest, open_regular};

/// What the MAC of functions is bound to, where that of a version has the artifact.
const FUNCTIONS_LABEL: &str = "functions";

/// The same for the code on which `init` runs; the digest of the component follows.
const INIT_LABEL: &str = "init";

/// The most components whose code for `init` is kept: guests that are worked on, rather than
/// versions. A guest with tract takes 80 MB.
const MAX_INIT_CODES: usize = 8;

/// The most bytes of it.
const MAX_INIT_BYTES: u64 = 1 << 30;

/// One file that children share, and its MAC beside it.
pub(super) struct Shared {
    code: PathBuf,
    mac: PathBuf,
    bound_to: Vec<String>,
}

impl Store {
    /// Functions by what they are compiled from.
    pub(super) fn functions(&self) -> Shared {
        self.shared(FUNCTIONS_LABEL.to_owned(), "bin", vec![FUNCTIONS_LABEL.to_owned()])
    }

    /// The code on which `init` of a component runs.
    pub(super) fn init_code(&self, component: Digest) -> Shared {
        let bound_to = vec![INIT_LABEL.to_owned(), component.to_string()];
        self.shared(format!("{INIT_LABEL}-{}", component.hex()), "cwasm", bound_to)
    }

    fn shared(&self, name: String, extension: &str, bound_to: Vec<String>) -> Shared {
        let path = |extension: &str| {
            self.compiled.join(format!("{name}-{}.{extension}", self.fingerprint))
        };
        Shared { code: path(extension), mac: path("mac"), bound_to }
    }

    /// Link it to where a child may read it, if it is there and ours.
    pub(super) fn lend(&self, shared: &Shared, to: &Path) {
        let lend = || {
            match fs::hard_link(&shared.code, to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            let code = open_regular(to)?;
            let is = self.mac_of_shared(&code, shared)?;
            let wanted = blake3::Hash::from_hex(fs::read(&shared.mac)?);
            if wanted.is_ok_and(|wanted| wanted == is) {
                note_use(&code);
                return Ok(());
            }
            Err(io::Error::other("it does not pass its MAC"))
        };
        if let Err(error) = lend() {
            let file = shared.name();
            tracing::warn!(%file, %error, "shared code cannot be used, compiling anew");
            // It may not even be there.
            let _ = fs::remove_file(to);
        }
    }

    /// Keep what a child has left. If this stops half-way, the MAC does not fit and it is not used.
    pub(super) fn take(&self, shared: &Shared, from: &Path) {
        let take = || {
            let code = match open_regular(from) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            let mac = self.mac_of_shared(&code, shared)?;
            durable::rename(from, &shared.code)?;
            let name = shared.mac.file_name().unwrap_or_default().to_string_lossy();
            durable::write_file(&self.compiled, &name, mac.to_hex().as_bytes())
        };
        if let Err(error) = take() {
            let file = shared.name();
            tracing::warn!(%file, %error, "shared code cannot be kept");
        }
    }

    /// Remove the code for `init` that was used least recently, until the rest is within bounds.
    pub(super) fn bound_init_codes(&self) -> io::Result<()> {
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
                // Without the code it means nothing.
                let _ = fs::remove_file(code.with_extension("mac"));
            }
        }
        Ok(())
    }

    fn mac_of_shared(&self, code: &File, shared: &Shared) -> io::Result<blake3::Hash> {
        let bound_to: Vec<_> = shared.bound_to.iter().map(String::as_str).collect();
        self.mac(code, &bound_to)
    }
}

impl Shared {
    fn name(&self) -> String {
        self.code.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// What is used is kept longest, and the time of the last change says when that was: nothing is
/// ever changed in place. Without it, it is only removed sooner.
pub(super) fn note_use(code: &File) {
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

    /// What the child finds of functions and of the code for `init`; it leaves both each time.
    fn lent(store: &Store, component: Digest) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let mut lent = (None, None);
        let make = |files: &CompileFiles| {
            lent = (fs::read(&files.functions).ok(), fs::read(&files.init_code).ok());
            let write =
                |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(StoreError::new("test"));
            write(&files.compiled, b"code")?;
            write(&files.functions_output, b"functions")?;
            write(&files.init_code_output, b"init")?;
            Ok::<_, StoreError>(report())
        };
        store.keep(Digest::of(b"artifact"), component, make).unwrap();
        lent
    }

    #[test]
    fn only_what_passes_its_mac_is_lent() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let component = Digest::of(b"component");
        let all = (Some(b"functions".to_vec()), Some(b"init".to_vec()));
        let lent = || lent(&store, component);
        assert_eq!(lent(), (None, None));
        assert_eq!(lent(), all);
        for shared in [store.functions(), store.init_code(component)] {
            fs::remove_file(&shared.code).unwrap();
            fs::write(&shared.code, b"evil").unwrap();
            assert_ne!(lent(), all);
            assert_eq!(lent(), all);
            fs::remove_file(&shared.mac).unwrap();
            assert_ne!(lent(), all);
            assert_eq!(lent(), all);
        }
    }

    #[test]
    fn code_for_init_is_only_lent_for_the_component_it_was_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        assert_eq!(lent(&store, one).1, None);
        assert_eq!(lent(&store, two).1, None);
        let (one_code, two_code) = (store.init_code(one), store.init_code(two));
        fs::rename(&one_code.code, &two_code.code).unwrap();
        fs::rename(&one_code.mac, &two_code.mac).unwrap();
        assert_eq!(lent(&store, two).1, None);
        assert_eq!(lent(&store, two).1.as_deref(), Some(&b"init"[..]));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), "engine");
        let component = |index: usize| Digest::of(&index.to_le_bytes());
        for index in 0..=MAX_INIT_CODES {
            lent(&store, component(index));
            let age = Duration::from_secs(60 * (MAX_INIT_CODES - index) as u64);
            let time = SystemTime::now() - age;
            let code = File::open(store.init_code(component(index)).code).unwrap();
            code.set_modified(time).unwrap();
            // The first is old, but in use.
            assert!(lent(&store, component(0)).1.is_some());
        }
        let there: Vec<_> = (0..=MAX_INIT_CODES)
            .filter(|index| store.init_code(component(*index)).code.exists())
            .collect();
        assert_eq!(there.len(), MAX_INIT_CODES);
        assert!(there.contains(&0) && !there.contains(&1));
        assert!(!store.init_code(component(1)).mac.exists());
    }
}
