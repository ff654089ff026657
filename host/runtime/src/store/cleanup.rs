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
use super::modules::imported;
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

impl StoredFiles {
    /// The stems of the modules that a compiled version for this engine imports.
    fn imported(&self, engine: &str) -> BTreeSet<String> {
        let is_record = |path: &&PathBuf| path.extension().is_some_and(|is| is == "json");
        self.paths.iter().find(is_record).map(|path| imported(path, engine)).unwrap_or_default()
    }
}

/// Files by their stem.
type NamedFiles = Vec<(String, StoredFiles)>;

/// The meaning of a file name.
#[derive(Debug, PartialEq)]
enum StoredKind {
    /// The compiled version of an artifact with this digest.
    Version(String),
    /// A module that compiled versions import.
    Module,
    /// Code that children share.
    Shared,
    /// Code that no host of this release uses.
    Superseded,
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

    fn removable(&self, loaded: &BTreeSet<Digest>, now: SystemTime) -> io::Result<NamedFiles> {
        let loaded: BTreeSet<_> = loaded.iter().map(Digest::hex).collect();
        let (mut removable, mut unused, mut modules) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut imported = BTreeSet::new();
        for (name, form) in self.forms()? {
            let Some((kind, engine)) = parse(&name) else { continue };
            match kind {
                StoredKind::Shared if engine == self.fingerprint => {}
                StoredKind::Shared | StoredKind::Superseded => removable.push((name, form)),
                StoredKind::Module => drop(modules.insert(name, form)),
                StoredKind::Version(digest)
                    if engine == self.fingerprint && loaded.contains(&digest) =>
                {
                    imported.extend(form.imported(engine));
                }
                StoredKind::Version(_) => unused.push((name, form)),
            }
        }
        let (gone, kept) = select_removable(unused, loaded.len(), now);
        removable.extend(gone);
        for (name, form) in kept {
            imported.extend(parse(&name).into_iter().flat_map(|(_, engine)| form.imported(engine)));
        }
        removable.extend(modules.into_iter().filter(|(name, _)| !imported.contains(name)));
        Ok(removable)
    }

    fn removable_artifacts(
        &self,
        deployed: &BTreeSet<Digest>,
        now: SystemTime,
    ) -> io::Result<NamedFiles> {
        let deployed: BTreeSet<_> = deployed.iter().map(Digest::hex).collect();
        let is_unused = |(name, _): &(String, StoredFiles)| {
            is_hex(name, 64) && !deployed.contains(name.as_str())
        };
        let unused = forms(&self.artifacts, &["wasm"])?.into_iter().filter(is_unused).collect();
        Ok(select_removable(unused, deployed.len(), now).0)
    }

    /// The files of compiled code by stem.
    fn forms(&self) -> io::Result<BTreeMap<String, StoredFiles>> {
        forms(&self.compiled, &["cwasm", "json", "bin", "mac"])
    }
}

/// Select the unused files to remove: those that are too old, or beyond the number of used ones. Returns
/// them, and the others.
fn select_removable(
    mut unused: NamedFiles,
    used: usize,
    now: SystemTime,
) -> (NamedFiles, NamedFiles) {
    unused.sort_by_key(|(_, form)| std::cmp::Reverse(form.used));
    let most = used.max(MIN_KEPT_UNUSED);
    let goes = |(index, (_, form)): &(usize, (String, StoredFiles))| {
        // A modification time in the future counts as recent.
        let age = form.used.and_then(|used| now.duration_since(used).ok());
        *index >= most || age.is_some_and(|age| age > KEPT_UNUSED)
    };
    let (gone, kept): (Vec<_>, Vec<_>) = unused.into_iter().enumerate().partition(goes);
    let form = |(_, form)| form;
    (gone.into_iter().map(form).collect(), kept.into_iter().map(form).collect())
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
    let kind = match front.split_once('-') {
        // Code for `init`, of releases that compiled it separately.
        Some(("init", component)) if is_hex(component, 64) => StoredKind::Superseded,
        Some(("module", module)) if is_hex(module, 64) => StoredKind::Module,
        None if front == "functions" => StoredKind::Shared,
        None if is_hex(front, 64) => StoredKind::Version(front.to_owned()),
        _ => return None,
    };
    is_hex(engine, 16).then_some((kind, engine))
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
        let all =
            |engine: &str| [format!("functions-{engine}.bin"), format!("functions-{engine}.mac")];
        let superseded = format!("init-{}-{ENGINE}.cwasm", digest(1).hex());
        let foreign = ["notes-00000000000000bb.json", "functions-old.bin", "README", ".new-1"];
        let names = all(ENGINE).into_iter().chain(all(OTHER_ENGINE));
        let names = names.chain([superseded.clone()]);
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
        assert!(!all(ENGINE).iter().any(exists) && !exists(&superseded));
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
    #[test]
    fn modules_are_kept_as_long_as_a_record_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), ENGINE);
        let import = |artifact: u32, module: u32| {
            let make = |files: &crate::preinit::CompileFiles| {
                let error = crate::store::StoreError::new("test");
                fs::create_dir(&files.modules_output).map_err(&error)?;
                let output = files.modules_output.join(digest(module).hex());
                fs::write(output, b"module").map_err(&error)?;
                fs::write(&files.compiled, b"code").map_err(&error)?;
                let modules = vec![digest(module)];
                let report = crate::store::tests::report();
                Ok::<_, crate::store::StoreError>(crate::preinit::PreinitReport {
                    modules,
                    ..report
                })
            };
            drop(store.keep(digest(artifact), make).unwrap());
        };
        import(1, 11);
        import(2, 11);
        import(3, 12);
        let kept = || [11, 12].map(|module| store.shared_module(digest(module)).exists());
        let later = SystemTime::now() + KEPT_UNUSED + DAY;
        store.collect(&BTreeSet::from([digest(1), digest(3)]), &BTreeSet::new(), later);
        assert_eq!(kept(), [true, true]);
        store.collect(&BTreeSet::from([digest(1)]), &BTreeSet::new(), later);
        assert_eq!(kept(), [true, false]);
        // Records of other engines name modules of these engines only.
        assert!(store.find(digest(1), false).unwrap().is_some());
    }
}
