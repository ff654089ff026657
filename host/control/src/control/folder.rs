//! The repository folder: what is put into it is deployed. It is read again and again, because that
//! works on every file system, those of networks included.
//!
//! A file that was there before the start is read at once; a later one when it has not changed from
//! one look to the next, so that a copy under way is left in peace. What is taken out of the folder
//! stays deployed: a folder that is not mounted takes nobody's model away.
//!
//! A version belongs to the first file, by name, that is proved. A file that fails by accident is tried
//! again after a pause.

mod on_demand;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::adoption::Adoption;
use super::ask::{Ask, ControlError};
use super::commit::Loaded;
use super::many::{Item, Tried, log_ready, side_by_side};
use super::{Control, DeployReport, retry};
use crate::registry::{LoadError, Slot, guarded};
use crate::rollout::{Deployed, ModelState, Operation, Promotion, Refusal, Stage};
use guesthouse_artifact::{ArtifactError, Digest};
use guesthouse_model::terminal;
use guesthouse_model::{ModelName, Signature, VersionId};
use guesthouse_runtime::clock;
use guesthouse_runtime::preinit::queue::CompilePriority;

/// How often `look` is called, and time is compared with what is due.
const TICK: Duration = Duration::from_millis(200);

/// How often files that nothing needs any more are looked for.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How often a folder is looked for that could not be read at the start, where it is not looked at later.
const MISSING_INTERVAL: Duration = Duration::from_secs(5);

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
    /// Whether it was read at all.
    is_read: bool,
    /// Whether it could not be read at the last look.
    is_missing: bool,
    read: BTreeMap<PathBuf, Stamp>,
    waiting: BTreeMap<PathBuf, Stamp>,
    /// Files that cannot be read: what they need is not known.
    unread: BTreeSet<PathBuf>,
    /// Files that failed by accident; no more than there are files.
    again: BTreeMap<PathBuf, Again>,
}

/// When a file is tried again that failed by accident.
#[derive(Debug, Clone, Copy)]
struct Again {
    /// How often reading it has failed in a row.
    failures: u32,
    next: Instant,
}

/// What others may know of the repository folder: which files hold which versions.
#[derive(Default)]
pub(super) struct KnownFolder {
    path: OnceLock<PathBuf>,
    /// Files that were read, and what was in them; no more than there are files.
    files: Mutex<BTreeMap<PathBuf, (Stamp, Option<VersionId>)>>,
}

/// What came of reading files.
#[derive(Default)]
struct Read {
    found: Vec<Found>,
    unread: Vec<PathBuf>,
    /// Files that could not be read or kept, by accident.
    accidents: Vec<PathBuf>,
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
    // Whoever asks later finds it set.
    let _ = control.folder.path.set(folder.to_owned());
    control.look_at_folder(folder, &mut seen)?;
    look();
    let (mut looked, mut collected) = (Instant::now(), Instant::now());
    loop {
        thread::sleep(TICK);
        look();
        if let Err(error) = control.retry_deployed().and_then(|()| control.retry_files(&mut seen)) {
            tracing::error!(%error, "cannot try again what failed");
        }
        if collected.elapsed() > COLLECT_INTERVAL {
            collected = Instant::now();
            control.collect_soon(seen.is_complete());
        }
        let interval = interval.or((!seen.is_read).then_some(MISSING_INTERVAL));
        if interval.is_none_or(|interval| looked.elapsed() < interval) {
            continue;
        }
        looked = Instant::now();
        control.look_at_folder(folder, &mut seen)?;
    }
}

impl Control {
    /// Deploy what is new in the folder. Where something was deployed before, a folder that cannot be read
    /// is waited for: it may be mounted late.
    fn look_at_folder(&self, folder: &Path, seen: &mut Seen) -> io::Result<()> {
        let Err(error) = self.read_folder(folder, seen) else {
            seen.is_missing = false;
            return Ok(());
        };
        let is_first = !seen.is_read;
        if is_first && !self.has_deployed() {
            return Err(error);
        }
        if std::mem::replace(&mut seen.is_missing, true) {
            tracing::debug!(%error, "cannot read the repository folder");
        } else {
            tracing::error!(%error, ?folder, "cannot read the repository folder, looking again");
        }
        if is_first {
            // What was deployed before is loaded by now, or has failed.
            self.registry.finish_loading();
        }
        Ok(())
    }

    /// Whether anything was ever deployed.
    fn has_deployed(&self) -> bool {
        let states = self.registry.states();
        states.values().any(|state| !state.versions.is_empty() || !state.withdrawn.is_empty())
    }

    fn read_folder(&self, folder: &Path, seen: &mut Seen) -> io::Result<()> {
        let stamps = stamps(folder)?;
        self.folder.lock().retain(|path, _| stamps.contains_key(path));
        let is_first = !seen.is_read;
        let paths = seen.news(stamps, is_first);
        if paths.is_empty() && !is_first {
            return Ok(());
        }
        let loading = self.begin_loading();
        self.deploy_files(paths, seen)?;
        seen.is_read = true;
        if is_first {
            self.registry.finish_loading();
            self.registry.warn_of_absent();
        }
        drop(loading);
        self.collect_soon(seen.is_complete());
        self.collect_if_due();
        tracing::info!("repository folder read");
        Ok(())
    }

    /// Try files again that failed by accident and whose pause is over.
    fn retry_files(&self, seen: &mut Seen) -> io::Result<()> {
        let now = Instant::now();
        let due = seen.again.iter().filter(|(_, again)| again.next <= now);
        let mut paths: Vec<_> = due.map(|(path, _)| path.clone()).collect();
        // One that has changed is read when it has come to rest.
        paths.retain(|path| {
            let stays = seen.read.get(path).is_some_and(|was| stamp(path).as_ref() == Some(was));
            if !stays {
                seen.again.remove(path);
            }
            stays
        });
        if paths.is_empty() {
            return Ok(());
        }
        let _loading = self.begin_loading();
        self.deploy_files(paths, seen)
    }

    /// Deploy what is new in these files. The caller has begun loading, so that files in use are not removed.
    fn deploy_files(&self, paths: Vec<PathBuf>, seen: &mut Seen) -> io::Result<()> {
        let deploy = || {
            let Read { found, unread, accidents } = self.read_files(paths.clone())?;
            let ids: BTreeMap<_, _> =
                found.iter().map(|file| (file.path.clone(), file.id.clone())).collect();
            {
                let mut known = self.folder.lock();
                for path in paths.iter().filter(|path| !accidents.contains(path)) {
                    let Some(stamp) = seen.read.get(path) else { continue };
                    known.insert(path.clone(), (stamp.clone(), ids.get(path).cloned()));
                }
            }
            self.deploy_found(found, CompilePriority::Folder)?;
            Ok((ids, unread, accidents))
        };
        let (ids, unread, accidents) = match deploy() {
            Ok(read) => read,
            Err(error) => {
                // They are news the next time.
                seen.read.retain(|path, _| !paths.contains(path));
                return Err(error);
            }
        };
        seen.unread.retain(|path| !paths.contains(path));
        seen.unread.extend(unread);
        for path in paths {
            let before = seen.again.remove(&path);
            let next = if accidents.contains(&path) {
                let failures = before.map_or(0, |again| again.failures).saturating_add(1);
                let next = Instant::now() + retry::pause(failures, rand::random());
                Some(Again { failures, next })
            } else {
                let next = ids.get(&path).and_then(|id| self.next_attempt(id));
                next.map(|next| Again { failures: 0, next })
            };
            if let Some(next) = next {
                seen.again.insert(path, next);
            }
        }
        Ok(())
    }

    /// When a version that was never deployed is tried again; what is deployed needs no file for that.
    fn next_attempt(&self, id: &VersionId) -> Option<Instant> {
        match self.registry.slot(id) {
            Some(Slot::Failed(failure)) if !self.is_deployed(id) => failure.retry_at,
            _ => None,
        }
    }

    fn is_deployed(&self, id: &VersionId) -> bool {
        self.registry.state(&id.name).versions.contains_key(&id.version)
    }

    /// Deploy files that were read, as far as the rules allow. Where several claim a version, one after
    /// the other is tried, in the order of their names, until one is proved.
    fn deploy_found(&self, found: Vec<Found>, urgency: CompilePriority) -> io::Result<()> {
        let adoption = Adoption::new(found.iter().map(|file| &file.id));
        thread::scope(|scope| {
            let adopting = thread::Builder::new().name("adopt".to_owned());
            adopting.spawn_scoped(scope, || adoption.run(self))?;
            let deployed = self.deploy_in_turn(found, urgency, &adoption);
            adoption.end_all();
            deployed
        })
    }

    fn deploy_in_turn(
        &self,
        mut found: Vec<Found>,
        urgency: CompilePriority,
        adoption: &Adoption,
    ) -> io::Result<()> {
        while !found.is_empty() {
            let refused: BTreeSet<_> = found.iter().map(|file| file.id.clone()).collect();
            let (accepted, deferred) = self.accept(found);
            found = deferred;
            let has_another_file = |id: &VersionId| found.iter().any(|file| file.id == *id);
            let is_accepted = |id: &VersionId| accepted.iter().any(|item| item.id == *id);
            for id in refused.iter().filter(|id| !is_accepted(id) && !has_another_file(id)) {
                adoption.end(id, false);
            }
            for item in &accepted {
                self.registry.set_slot(&item.id, Slot::Loading);
            }
            self.load_many(accepted, urgency, &|item, tried| {
                let is_ready = self.bring_in(item, tried);
                if is_ready || !has_another_file(&item.id) {
                    adoption.end(&item.id, is_ready);
                }
            })?;
        }
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
                        LoadError::Artifact(ArtifactError::Read(error)) => {
                            all.unread.push(path.clone());
                            if may_pass(error) {
                                all.accidents.push(path.clone());
                            }
                        }
                        LoadError::Panicked(_) => all.unread.push(path.clone()),
                        LoadError::Store(_) => all.accidents.push(path.clone()),
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
            let (artifact, received) = self.loader.store.receive_file::<LoadError>(path)?;
            let (id, digest) = (artifact.id().clone(), artifact.digest());
            let signature = artifact.signature().cloned().ok_or(LoadError::Signature)?;
            let state = self.registry.state(&id.name);
            if let Some(received) = received
                && !state.withdrawn.contains(&digest)
            {
                self.loader.store.keep_received(received, digest)?;
            }
            Ok(Found { path: path.to_owned(), id, digest, signature })
        })
    }

    /// Which of the files are new versions that the rules allow, in the order of their names, and of
    /// their numbers where it is about their signatures; and those of which that depends on whether
    /// another one of them is proved.
    fn accept(&self, found: Vec<Found>) -> (Vec<Item>, Vec<Found>) {
        let mut digests = BTreeSet::new();
        let mut states = BTreeMap::<ModelName, ModelState>::new();
        let (mut fresh, mut deferred) = (Vec::<Found>::new(), Vec::new());
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
                    let decided = self.registry.state(model);
                    if decided.same_precedence(version).is_none() {
                        deferred.push(file);
                        continue;
                    }
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
        let accepted = self.keep_contracts(fresh, &mut deferred);
        deferred.sort_by(|one, other| one.path.cmp(&other.path));
        (accepted, deferred)
    }

    /// Which of them keep what their numbers promise, after what is deployed. Those that only break a
    /// promise after another one of them are deferred until it is known whether that one is proved.
    fn keep_contracts(&self, fresh: Vec<Found>, deferred: &mut Vec<Found>) -> Vec<Item> {
        let mut states = BTreeMap::<ModelName, ModelState>::new();
        let mut accepted = Vec::new();
        for file in fresh {
            let Found { id, digest, signature, .. } = &file;
            let decided = self.registry.state(&id.name);
            if let Err(error) = self.check_contract(&decided, id, signature) {
                self.refuse(id, error.failure());
                continue;
            }
            let state = states.entry(id.name.clone()).or_insert(decided);
            if self.check_contract(state, id, signature).is_err() {
                deferred.push(file);
                continue;
            }
            let deployed = Deployed { digest: *digest, stage: Stage::Deployed };
            state.versions.insert(id.version.clone(), deployed);
            accepted.push(Item { id: file.id, digest: file.digest, is_stable: false });
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
        self.loader.store.collect(&loaded, &deployed, clock::now());
    }
}

impl KnownFolder {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, (Stamp, Option<VersionId>)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Whether it is known what every file of the folder needs.
    fn is_complete(&self) -> bool {
        self.is_read && !self.is_missing && self.unread.is_empty()
    }

    /// Files to read now.
    fn news(&mut self, stamps: BTreeMap<PathBuf, Stamp>, at_once: bool) -> Vec<PathBuf> {
        self.read.retain(|path, _| stamps.contains_key(path));
        self.unread.retain(|path| stamps.contains_key(path));
        self.again.retain(|path, _| stamps.contains_key(path));
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
            // Between the look and this one, it may have gone.
            let Some(stamp) = stamp(&path) else { continue };
            stamps.insert(path, stamp);
        }
    }
    Ok(stamps)
}

/// Of a link, what it points to; of one that points to nothing, the link.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).or_else(|_| std::fs::symlink_metadata(path)).ok()?;
    Some(Stamp {
        inode: (metadata.dev(), metadata.ino()),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Whether a file that cannot be read may be read later although it does not change: the disk, the
/// network or this process is in trouble. A file of another kind, a dangling link or missing permissions
/// are not, and are seen to change.
fn may_pass(error: &io::Error) -> bool {
    let is_loop = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    let stays = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    error.raw_os_error().is_some() && !stays && !is_loop
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

    #[test]
    fn only_files_that_may_be_read_later_unchanged_are_tried_again() {
        use rustix::io::Errno;
        let tried = |errno: Errno| may_pass(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!(
            [Errno::IO, Errno::STALE, Errno::MFILE, Errno::TIMEDOUT]
                .map(tried)
                .iter()
                .all(|it| *it)
        );
        assert!(![Errno::NOENT, Errno::ACCESS, Errno::LOOP].map(tried).iter().any(|it| *it));
        assert!(!may_pass(&io::Error::other("it is not a regular file")));
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
