//! The repository folder: what is put into it is deployed. It is read again and again, because that
//! works on every file system, those of networks included.
//!
//! A file that was there before the start is read at once; a later one when it has not changed from
//! one look to the next, so that a copy under way is left in peace. What is taken out of the folder
//! stays deployed: a folder that is not mounted takes nobody's model away.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::adoption::Adoption;
use super::ask::{Ask, ControlError};
use super::commit::Loaded;
use super::many::{Item, Tried, log_ready, side_by_side};
use super::{Control, DeployReport};
use crate::artifact::{Artifact, ArtifactError, Digest};
use crate::model::{ModelName, Signature, VersionId};
use crate::preinit::queue::Urgency;
use crate::registry::{LoadError, Slot, guarded};
use crate::rollout::{Deployed, ModelState, Operation, Promotion, Refusal, Stage};
use crate::terminal;

/// How often `look` is called, and time is compared with what is due.
const TICK: Duration = Duration::from_millis(200);

/// How often files that nothing needs any more are looked for.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// After which time a file is tried again for which there was no room.
const AGAIN_INTERVAL: Duration = Duration::from_secs(60);

/// What tells that a file is another one than before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    /// Permissions change without the content.
    changed: (i64, i64),
}

/// The repository folder, as far as it has been read.
#[derive(Default)]
struct Seen {
    read: BTreeMap<PathBuf, Stamp>,
    waiting: BTreeMap<PathBuf, Stamp>,
    /// Files that cannot be read: what they need is not known.
    unread: BTreeSet<PathBuf>,
    /// Files that may be deployed another time, for want of room now, and when they are tried again.
    again: Option<(Instant, Vec<PathBuf>)>,
}

/// What came of reading files.
#[derive(Default)]
struct Read {
    found: Vec<Found>,
    unread: Vec<PathBuf>,
    /// Artifacts that the state folder could not take.
    no_room: Vec<PathBuf>,
}

/// A file of the folder that holds an artifact.
struct Found {
    path: PathBuf,
    id: VersionId,
    digest: Digest,
    signature: Signature,
}

/// Keep to what the folder says, for ever: deploy what is new. `look` is called after the first look at the folder and, from then on, now and then.
///
/// # Errors
/// The folder cannot be read the first time, or the machine gives no more threads.
pub fn keep(
    control: &Control,
    folder: &Path,
    interval: Option<Duration>,
    mut look: impl FnMut(),
) -> io::Result<Infallible> {
    let mut seen = Seen::default();
    control.read_folder(folder, &mut seen, true)?;
    look();
    let mut unreadable = false;
    let (mut looked, mut collected) = (Instant::now(), Instant::now());
    loop {
        thread::sleep(TICK);
        look();
        if collected.elapsed() > COLLECT_INTERVAL {
            collected = Instant::now();
            control.collect_soon(seen.unread.is_empty());
        }
        if interval.is_none_or(|interval| looked.elapsed() < interval) {
            continue;
        }
        looked = Instant::now();
        match control.read_folder(folder, &mut seen, false) {
            Ok(()) => unreadable = false,
            Err(error) if unreadable => {
                tracing::debug!(%error, "cannot read the repository folder")
            }
            Err(error) => {
                unreadable = true;
                tracing::error!(%error, "cannot read the repository folder");
            }
        }
    }
}

impl Control {
    /// Deploy what is new in the folder.
    fn read_folder(&self, folder: &Path, seen: &mut Seen, at_once: bool) -> io::Result<()> {
        if let Some((_, paths)) = seen.again.take_if(|(time, _)| *time <= Instant::now()) {
            seen.read.retain(|path, _| !paths.contains(path));
        }
        let paths = seen.news(stamps(folder)?, at_once);
        if paths.is_empty() && !at_once {
            return Ok(());
        }
        let loading = self.begin_loading();
        seen.unread.retain(|path| !paths.contains(path));
        let Read { found, unread, no_room } = self.read_files(paths)?;
        seen.unread.extend(unread);
        let paths: Vec<_> = found.iter().map(|file| (file.path.clone(), file.id.clone())).collect();
        let accepted = self.accept(found);
        for item in &accepted {
            self.registry.set_slot(&item.id, Slot::Loading);
        }
        let adoption = Adoption::new(&accepted);
        thread::scope(|scope| {
            let adopting = thread::Builder::new().name("adopt".to_owned());
            adopting.spawn_scoped(scope, || adoption.run(self))?;
            let loaded = self.load_many(accepted, Urgency::Folder, &|item, tried| {
                adoption.end(&item.id, self.bring_in(item, tried));
            });
            adoption.end_all();
            loaded
        })?;
        let had_no_room = |id: &VersionId| {
            let slot = self.registry.slot(id);
            matches!(slot, Some(Slot::Failed(failure)) if ["store", "admission"].contains(&failure.step))
        };
        let again = paths.into_iter().filter(|(_, id)| had_no_room(id)).map(|(path, _)| path);
        let mut again: Vec<_> = again.chain(no_room).collect();
        again.extend(seen.again.take().into_iter().flat_map(|(_, paths)| paths));
        if !again.is_empty() {
            seen.again = Some((Instant::now() + AGAIN_INTERVAL, again));
        }
        if at_once {
            self.registry.finish_loading();
            self.registry.warn_of_absent();
        }
        drop(loading);
        self.collect_soon(seen.unread.is_empty());
        self.collect_if_due();
        tracing::info!("repository folder read");
        Ok(())
    }

    /// Read files side by side and put what is an artifact into the store.
    fn read_files(&self, paths: Vec<PathBuf>) -> io::Result<Read> {
        let all = Mutex::new(Read::default());
        let read = |path: PathBuf| {
            let outcome = self.read_file(&path);
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(file) => all.found.push(file),
                Err(error) => {
                    match &error {
                        LoadError::Artifact(ArtifactError::Read(_)) | LoadError::Panicked(_) => {
                            all.unread.push(path.clone());
                        }
                        LoadError::Store(_) => all.no_room.push(path.clone()),
                        _ => {}
                    }
                    report(&path, &error.into());
                }
            }
        };
        side_by_side(paths, self.loader.engines.thread_stack_bytes(), &read)?;
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(all)
    }

    fn read_file(&self, path: &Path) -> Result<Found, LoadError> {
        guarded(|| {
            let artifact = Artifact::open(path)?;
            let (id, digest) = (artifact.id().clone(), artifact.digest());
            let signature = artifact.signature().cloned().ok_or(LoadError::Signature)?;
            let state = self.registry.state(&id.name);
            if !state.withdrawn.contains(&digest) {
                self.loader.store.keep_artifact(&artifact)?;
            }
            Ok(Found { path: path.to_owned(), id, digest, signature })
        })
    }

    /// Which of the files are new versions that the rules allow, in the order of their names, and of
    /// their numbers where it is about their signatures.
    fn accept(&self, found: Vec<Found>) -> Vec<Item> {
        let mut digests = BTreeSet::new();
        let mut states = BTreeMap::<ModelName, ModelState>::new();
        let mut fresh = Vec::<Found>::new();
        for file in found {
            let (model, version) = (&file.id.name, &file.id.version);
            let name = file_name(&file.path);
            if !digests.insert(file.digest) {
                tracing::info!(file = %name, %model, %version, "skipped: the same artifact under another name");
                continue;
            }
            let state = states.entry(model.clone()).or_insert_with(|| self.registry.state(model));
            if state.withdrawn.contains(&file.digest) {
                tracing::info!(file = %name, %model, %version, "skipped: this artifact was undeployed");
                continue;
            }
            match state.same_precedence(version) {
                Some((same, held)) if same != version || held.digest != file.digest => {
                    let refusal = Refusal::OtherContent(same.clone(), held.digest);
                    report(&file.path, &refusal.into());
                }
                // Damage of what is kept in the state folder is made good.
                Some(_) if matches!(self.registry.slot(&file.id), Some(Slot::Failed(_))) => {
                    fresh.push(file);
                }
                // What is served already, and what an operator has decided about.
                Some(_) => {}
                None => {
                    let deployed = Deployed { digest: file.digest, stage: Stage::Deployed };
                    state.versions.insert(version.clone(), deployed);
                    fresh.push(file);
                }
            }
        }
        fresh.sort_by(|one, other| one.id.cmp(&other.id));
        self.keep_contracts(fresh)
    }

    /// Which of them keep what their numbers promise.
    fn keep_contracts(&self, fresh: Vec<Found>) -> Vec<Item> {
        let mut states = BTreeMap::<ModelName, ModelState>::new();
        let mut accepted = Vec::new();
        for Found { id, digest, signature, .. } in fresh {
            let state =
                states.entry(id.name.clone()).or_insert_with(|| self.registry.state(&id.name));
            match self.check_contract(state, &id, &signature) {
                Err(error) => self.refuse(&id, error.failure()),
                Ok(()) => {
                    let deployed = Deployed { digest, stage: Stage::Deployed };
                    state.versions.insert(id.version.clone(), deployed);
                    accepted.push(Item { id, digest, is_stable: false });
                }
            }
        }
        accepted
    }

    /// A version that was loaded is deployed; one that was not is shown as failed. Whether it is ready.
    fn bring_in(&self, item: &Item, tried: Tried<'_>) -> bool {
        let Tried { version, from, started, turn: _turn } = tried;
        let outcome = version.map_err(ControlError::from).and_then(|version| {
            let (version_number, digest) = (item.id.version.clone(), item.digest);
            let report = DeployReport { version: version_number.clone(), digest, replay: None };
            let operation =
                Operation::Deploy { version: version_number, digest, promotion: Promotion::No };
            let loaded = Loaded::new(Some(version), report);
            self.commit(&item.id.name, &operation, &Ask::of_host("repository"), Some(loaded))
        });
        match &outcome {
            Ok(_) => log_ready(&item.id, from, started),
            Err(error) => self.refuse(&item.id, error.failure()),
        }
        outcome.is_ok()
    }

    /// The highest release of a model of which nothing was ever promoted is its stable version.
    pub(super) fn adopt(&self, model: &ModelName) {
        let state = self.registry.state(model);
        if state.routing.stable.is_some() {
            return;
        }
        let snapshot = self.registry.snapshot();
        let versions = snapshot.models.get(model).into_iter().flat_map(|model| &model.versions);
        let ready = versions.filter(|(_, state)| state.servable().is_some());
        let ready = ready.map(|(version, _)| version.clone()).collect();
        let operation = Operation::Adopt { ready };
        if let Err(error) = self.commit(model, &operation, &Ask::of_host("repository"), None) {
            let reason = error.failure().reason;
            tracing::error!(%model, %reason, "cannot make the highest version the stable one");
        }
    }

    /// Remove files that nothing needs. Whoever calls this holds the lock of loading alone.
    pub(super) fn collect(&self) {
        let states = self.registry.states();
        let loaded =
            states.values().flat_map(ModelState::loaded).map(|(_, digest)| digest).collect();
        let deployed = states.values().flat_map(|state| state.versions.values());
        // Of a model that was unloaded, what comes back when it is loaded again.
        let unloaded = states.values().filter(|state| state.versions.is_empty());
        let unloaded = unloaded.filter_map(|state| state.withdrawn.last().copied());
        let deployed = deployed.map(|deployed| deployed.digest).chain(unloaded).collect();
        self.loader.store.collect(&loaded, &deployed, SystemTime::now());
    }
}

impl Seen {
    /// Files to read now.
    fn news(&mut self, stamps: BTreeMap<PathBuf, Stamp>, at_once: bool) -> Vec<PathBuf> {
        self.read.retain(|path, _| stamps.contains_key(path));
        self.unread.retain(|path| stamps.contains_key(path));
        let mut news = Vec::new();
        let mut waiting = BTreeMap::new();
        for (path, stamp) in stamps {
            if self.read.get(&path) == Some(&stamp) {
                continue;
            }
            if at_once || self.waiting.get(&path) == Some(&stamp) {
                self.read.insert(path.clone(), stamp);
                news.push(path);
            } else {
                waiting.insert(path, stamp);
            }
        }
        self.waiting = waiting;
        news
    }
}

/// What is called `*.wasm` directly in the folder, hidden files left out; whether it can be read is
/// seen later.
fn stamps(folder: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut stamps = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "wasm") && !hidden {
            // Of a link, what it points to; of one that points to nothing, the link.
            let metadata = std::fs::metadata(&path).or_else(|_| std::fs::symlink_metadata(&path));
            // Between the look and this one, it may have gone.
            let Ok(metadata) = metadata else { continue };
            let stamp = Stamp {
                inode: (metadata.dev(), metadata.ino()),
                length: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            };
            stamps.insert(path, stamp);
        }
    }
    Ok(stamps)
}

fn file_name(path: &Path) -> String {
    terminal::printable(&path.file_name().unwrap_or_default().to_string_lossy())
}

fn report(path: &Path, error: &ControlError) {
    let (file, failure) = (file_name(path), error.failure());
    let (step, reason) = (failure.step, &*failure.reason);
    tracing::error!(%file, step, reason, "failed to load an artifact");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(length: u64) -> Stamp {
        Stamp { inode: (1, 1), length, modified: (0, 0), changed: (0, 0) }
    }

    fn look(seen: &mut Seen, files: &[(&str, u64)], at_once: bool) -> Vec<String> {
        let stamps = files.iter().map(|(name, length)| (PathBuf::from(name), stamp(*length)));
        let news = seen.news(stamps.collect(), at_once);
        news.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn a_file_is_read_when_it_has_come_to_rest_and_again_when_it_changes() {
        let mut seen = Seen::default();
        assert_eq!(look(&mut seen, &[("a", 1)], true), ["a"]);
        assert!(look(&mut seen, &[("a", 1), ("b", 1)], false).is_empty());
        assert!(look(&mut seen, &[("a", 1), ("b", 2)], false).is_empty());
        assert_eq!(look(&mut seen, &[("a", 1), ("b", 2)], false), ["b"]);
        assert!(look(&mut seen, &[("a", 1), ("b", 2)], false).is_empty());
        assert!(look(&mut seen, &[("a", 2), ("b", 2)], false).is_empty());
        assert_eq!(look(&mut seen, &[("a", 2), ("b", 2)], false), ["a"]);
        // Gone and back again.
        assert!(look(&mut seen, &[("a", 2)], false).is_empty());
        assert!(look(&mut seen, &[("a", 2), ("b", 2)], false).is_empty());
        assert_eq!(look(&mut seen, &[("a", 2), ("b", 2)], false), ["b"]);
    }
}
