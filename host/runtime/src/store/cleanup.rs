//! Removes compiled versions and artifacts that are not used any more.
//!
//! A compiled version without a loaded artifact may be needed again if an operator restores an old
//! file or an old host. So as many unused ones are kept as there are artifacts, the most recently
//! used, for a month. Shared code is only kept for the engine of this host, because it only saves
//! time. Files with names of other forms are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Store;
use guesthouse_artifact::Digest;

/// How long unused files are kept.
const KEPT_UNUSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How many unused ones are kept at least, even if there are fewer artifacts.
const MIN_KEPT_UNUSED: usize = 8;

/// Files with the same stem.
#[derive(Default)]
struct StoredFiles {
    paths: Vec<PathBuf>,
    bytes: u64,
    used: Option<SystemTime>,
}

/// The meaning of a file name.
#[derive(Debug, PartialEq)]
enum StoredKind {
    /// The compiled version of an artifact with this digest.
    Version(String),
    /// Code that children share.
    Shared,
}

impl Store {
    /// Remove compiled versions of artifacts other than the `loaded` ones, and artifacts other than
    /// the `deployed` ones. The caller has to ensure that nothing is compiled or deployed at the
    /// same time, because it could be taken for unused.
    pub fn collect(&self, loaded: &BTreeSet<Digest>, deployed: &BTreeSet<Digest>, now: SystemTime) {
        let removable = self.removable(loaded, now).and_then(|mut removable| {
            removable.extend(self.removable_artifacts(deployed, now)?);
            Ok(removable)
        });
        match removable {
            Ok(removable) => removable.iter().for_each(|(name, form)| remove(name, form)),
            Err(error) => tracing::warn!(%error, "cannot look for files to remove"),
        }
    }

    fn removable(
        &self,
        loaded: &BTreeSet<Digest>,
        now: SystemTime,
    ) -> io::Result<Vec<(String, StoredFiles)>> {
        let loaded: BTreeSet<_> = loaded.iter().map(Digest::hex).collect();
        let (mut removable, mut unused) = (Vec::new(), Vec::new());
        for (name, form) in self.forms()? {
            let Some((kind, engine)) = parse(&name) else { continue };
            match kind {
                StoredKind::Shared if engine == self.fingerprint => {}
                StoredKind::Shared => removable.push((name, form)),
                StoredKind::Version(digest)
                    if engine == self.fingerprint && loaded.contains(&digest) => {}
                StoredKind::Version(_) => unused.push((name, form)),
            }
        }
        removable.extend(select_removable(unused, loaded.len(), now));
        Ok(removable)
    }

    fn removable_artifacts(
        &self,
        deployed: &BTreeSet<Digest>,
        now: SystemTime,
    ) -> io::Result<Vec<(String, StoredFiles)>> {
        let deployed: BTreeSet<_> = deployed.iter().map(Digest::hex).collect();
        let is_unused = |(name, _): &(String, StoredFiles)| {
            is_hex(name, 64) && !deployed.contains(name.as_str())
        };
        let unused = forms(&self.artifacts, &["wasm"])?.into_iter().filter(is_unused).collect();
        Ok(select_removable(unused, deployed.len(), now))
    }

    /// The files of compiled code by stem.
    fn forms(&self) -> io::Result<BTreeMap<String, StoredFiles>> {
        forms(&self.compiled, &["cwasm", "json", "bin", "mac"])
    }
}

/// Select the unused files to remove: those that are too old, or beyond the number of used ones.
fn select_removable(
    mut unused: Vec<(String, StoredFiles)>,
    used: usize,
    now: SystemTime,
) -> Vec<(String, StoredFiles)> {
    unused.sort_by_key(|(_, form)| std::cmp::Reverse(form.used));
    let most = used.max(MIN_KEPT_UNUSED);
    let goes = |(index, (_, form)): &(usize, (String, StoredFiles))| {
        // A modification time in the future counts as recent.
        let age = form.used.and_then(|used| now.duration_since(used).ok());
        *index >= most || age.is_some_and(|age| age > KEPT_UNUSED)
    };
    unused.into_iter().enumerate().filter(goes).map(|(_, form)| form).collect()
}

fn forms(folder: &Path, extensions: &[&str]) -> io::Result<BTreeMap<String, StoredFiles>> {
    let mut forms = BTreeMap::<String, StoredFiles>::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        let ours = path
            .extension()
            .is_some_and(|extension| extensions.iter().any(|known| extension == *known));
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| ours && metadata.is_file()) else { continue };
        let form = forms.entry(name.to_owned()).or_default();
        form.bytes += metadata.len();
        form.used = form.used.max(metadata.modified().ok());
        form.paths.push(path);
    }
    Ok(forms)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Parse the stem of a file name into its kind and the fingerprint of its engine.
fn parse(name: &str) -> Option<(StoredKind, &str)> {
    let (front, engine) = name.rsplit_once('-')?;
    let front_is_ours = match front.strip_prefix("init-") {
        Some(component) => is_hex(component, 64),
        None => front == "functions" || is_hex(front, 64),
    };
    if !front_is_ours || !is_hex(engine, 16) {
        return None;
    }
    let kind =
        if is_hex(front, 64) { StoredKind::Version(front.to_owned()) } else { StoredKind::Shared };
    Some((kind, engine))
}

/// Remove files. If this is interrupted, the remaining ones are incomplete and removed the next
/// time.
fn remove(name: &str, form: &StoredFiles) {
    let mut removed = Ok(());
    for path in &form.paths {
        removed = removed.and(fs::remove_file(path));
    }
    let mebibytes = form.bytes >> 20;
    match removed {
        Ok(()) => tracing::info!(name, mebibytes, "removed a file that nothing needs"),
        Err(error) => tracing::warn!(name, %error, "cannot remove a file"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::tests::{keep, open};
    use super::*;

    const ENGINE: &str = "00000000000000aa";
    const OTHER_ENGINE: &str = "00000000000000bb";
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn digest(name: u32) -> Digest {
        Digest::from_content(&name.to_le_bytes())
    }

    /// Store compiled versions, each used a minute after the previous one.
    fn fill(store: &Store, names: std::ops::Range<u32>) {
        for name in names {
            keep(store, digest(name), b"code");
            let time = SystemTime::now() - DAY + Duration::from_secs(60) * name;
            for extension in ["cwasm", "json"] {
                let file = File::open(store.path(digest(name), extension)).unwrap();
                file.set_modified(time).unwrap();
            }
        }
    }

    fn there(store: &Store, names: std::ops::Range<u32>) -> Vec<u32> {
        names.filter(|name| store.path(digest(*name), "cwasm").exists()).collect()
    }

    #[test]
    fn loaded_and_recently_used_versions_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), ENGINE);
        fill(&store, 0..12);
        let loaded = BTreeSet::from([digest(0), digest(3)]);
        store.collect(&loaded, &loaded, SystemTime::now());
        assert_eq!(there(&store, 0..12), [0, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        // Finding a version counts as a use.
        assert!(store.find(digest(4), false).unwrap().is_some());
        store.collect(&loaded, &loaded, SystemTime::now() + KEPT_UNUSED - DAY / 2);
        assert_eq!(there(&store, 0..12), [0, 3, 4]);
        store.collect(&loaded, &loaded, SystemTime::now() + KEPT_UNUSED + DAY);
        assert_eq!(there(&store, 0..12), [0, 3]);
        assert_eq!(fs::read_dir(&store.compiled).unwrap().count(), 4, "code and record of each");
    }

    #[test]
    fn as_many_unused_versions_are_kept_as_are_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), ENGINE);
        fill(&store, 0..30);
        store.collect(&(20..30).map(digest).collect(), &BTreeSet::new(), SystemTime::now());
        assert_eq!(there(&store, 0..30), (10..30).collect::<Vec<_>>());
    }

    #[test]
    fn shared_code_is_only_kept_for_this_engine() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), ENGINE));
        let compiled = folder.path().join("compiled");
        let component = digest(1).hex();
        let all = |engine: &str| {
            [
                format!("functions-{engine}.bin"),
                format!("functions-{engine}.mac"),
                format!("init-{component}-{engine}.cwasm"),
                format!("init-{component}-{engine}.mac"),
            ]
        };
        let foreign = ["notes-00000000000000bb.json", "functions-old.bin", "README", ".new-1"];
        let names = all(ENGINE).into_iter().chain(all(OTHER_ENGINE));
        let names: Vec<_> = names.chain(foreign.map(str::to_owned)).collect();
        let store = open(folder.path(), ENGINE);
        names.iter().for_each(|name| fs::write(compiled.join(name), b"code").unwrap());
        keep(&store, digest(2), b"code");
        drop(store);
        // Compiled versions of another engine are kept like other unused ones.
        let store = open(folder.path(), OTHER_ENGINE);
        keep(&store, digest(2), b"code");
        fs::write(compiled.join(".new-1"), b"code").unwrap();
        store.collect(&BTreeSet::from([digest(2)]), &BTreeSet::new(), SystemTime::now());
        let exists = |name: &String| compiled.join(name).exists();
        assert!(!all(ENGINE).iter().any(exists));
        assert!(all(OTHER_ENGINE).iter().all(exists));
        assert!(foreign.iter().all(|name| exists(&(*name).to_owned())));
        let version = |engine: &str| format!("{}-{engine}.cwasm", digest(2).hex());
        assert!(exists(&version(ENGINE)) && exists(&version(OTHER_ENGINE)));
        store.collect(
            &BTreeSet::from([digest(2)]),
            &BTreeSet::new(),
            SystemTime::now() + KEPT_UNUSED + DAY,
        );
        assert!(!exists(&version(ENGINE)) && exists(&version(OTHER_ENGINE)));
    }
}
