//! The repository folder: artifacts that are put into it are deployed. It is polled, because that works
//! on every file system, network file systems included.
//!
//! A file that was there at the start is read at once; a later one when it has not changed between two
//! looks, so that a copy under way is not disturbed. An artifact that is taken out of the folder stays
//! deployed: a folder that is not mounted takes no model out of service.
//!
//! If several files have the same version, the first one by name that is proved gets it. A file that could
//! not be read, or whose deployment failed for a reason that may pass, is tried again after a pause.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::adoption::Adoption;
use super::change::ChangeOptions;
use super::deployment::{Origin, Plan};
use super::error::ControlError;
use super::folder_index::{FileStamp, list, stamp};
use super::retry;
use super::schedule::run_parallel;
use super::state::Control;
use crate::registry::{LoadError, LoadState, catch_panic};
use crate::rollout::{Deployed, ModelState, Operation, RolloutError, Stage};
use guesthouse_artifact::{ArtifactError, Digest};
use guesthouse_model::terminal;
use guesthouse_model::{ModelName, Signature, VersionId};
use guesthouse_runtime::load::SignatureMismatch;
use guesthouse_runtime::preinit::queue::CompilePriority;

/// How often the folder's timers are compared with the clock.
const TICK: Duration = Duration::from_millis(200);

/// How often files that nothing needs any more are looked for.
const COLLECT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How often a folder that could not be read at the start is looked for, if it is not polled otherwise.
const MISSING_INTERVAL: Duration = Duration::from_secs(5);

/// What the watcher remembers of the folder.
#[derive(Default)]
struct Watched {
    /// Whether it has been read at all.
    is_read: bool,
    /// Whether it could not be read at the last look.
    is_missing: bool,
    read: BTreeMap<PathBuf, FileStamp>,
    /// New or changed files that may still be being written.
    settling: BTreeMap<PathBuf, FileStamp>,
    /// Files that cannot be read: which files of the state folder they need is not known.
    unread: BTreeSet<PathBuf>,
    /// Files that are tried again; no more than there are files.
    retries: BTreeMap<PathBuf, FileRetry>,
}

/// When a file is tried again.
#[derive(Debug, Clone, Copy)]
struct FileRetry {
    /// How often reading it has failed in a row.
    failures: u32,
    next: Instant,
}

/// The outcome of reading files.
#[derive(Default)]
pub(super) struct FilesRead {
    pub(super) found: Vec<FoundArtifact>,
    unread: Vec<PathBuf>,
    /// Files that could not be read or stored, for a reason that may pass.
    retryable: Vec<PathBuf>,
}

/// A file of the folder that holds an artifact.
pub(super) struct FoundArtifact {
    path: PathBuf,
    pub(super) id: VersionId,
    digest: Digest,
    signature: Signature,
}

/// Deploy what is put into the folder, without end. `look` is called after the first look at the folder
/// and at every tick from then on.
///
/// # Errors
/// The folder cannot be read the first time, or the operating system gives no more threads.
pub fn watch_folder(
    control: &Control,
    folder: &Path,
    interval: Option<Duration>,
    mut look: impl FnMut(),
) -> io::Result<Infallible> {
    let mut watched = Watched::default();
    let _ = control.folder.path.set(folder.to_owned());
    control.look_at_folder(folder, &mut watched)?;
    look();
    let (mut looked, mut collected) = (Instant::now(), Instant::now());
    loop {
        thread::sleep(TICK);
        look();
        if let Err(error) =
            control.retry_deployed().and_then(|()| control.retry_files(&mut watched))
        {
            tracing::error!(%error, "cannot retry failed deployments");
        }
        if collected.elapsed() > COLLECT_INTERVAL {
            collected = Instant::now();
            control.collect_soon(watched.is_complete());
        }
        let interval = interval.or((!watched.is_read).then_some(MISSING_INTERVAL));
        if interval.is_none_or(|interval| looked.elapsed() < interval) {
            continue;
        }
        looked = Instant::now();
        control.look_at_folder(folder, &mut watched)?;
    }
}

impl Control {
    /// Deploy what is new in the folder. If anything was ever deployed, a folder that cannot be read is not
    /// an error, because it may be mounted late.
    fn look_at_folder(&self, folder: &Path, watched: &mut Watched) -> io::Result<()> {
        let Err(error) = self.read_folder(folder, watched) else {
            watched.is_missing = false;
            return Ok(());
        };
        let is_first = !watched.is_read;
        if is_first && !self.has_deployed() {
            return Err(error);
        }
        if std::mem::replace(&mut watched.is_missing, true) {
            tracing::debug!(%error, "cannot read the repository folder");
        } else {
            tracing::error!(%error, ?folder, "cannot read the repository folder, looking again");
        }
        if is_first {
            // The versions that were deployed before are loaded by now, or have failed.
            self.registry.finish_loading();
        }
        Ok(())
    }

    /// Whether anything was ever deployed.
    fn has_deployed(&self) -> bool {
        let states = self.registry.states();
        states.values().any(|state| !state.versions.is_empty() || !state.withdrawn.is_empty())
    }

    fn read_folder(&self, folder: &Path, watched: &mut Watched) -> io::Result<()> {
        let stamps = list(folder)?;
        self.folder.files().retain(|path, _| stamps.contains_key(path));
        let is_first = !watched.is_read;
        let paths = watched.take_new(stamps, is_first);
        if paths.is_empty() && !is_first {
            return Ok(());
        }
        let files = self.hold_files();
        self.deploy_files(paths, watched)?;
        watched.is_read = true;
        if is_first {
            self.registry.finish_loading();
            self.registry.warn_about_missing();
        }
        drop(files);
        self.collect_soon(watched.is_complete());
        self.collect_if_due();
        tracing::info!("repository folder read");
        Ok(())
    }

    /// Try files again whose pause is over.
    fn retry_files(&self, watched: &mut Watched) -> io::Result<()> {
        let now = Instant::now();
        let due = watched.retries.iter().filter(|(_, retry)| retry.next <= now);
        let mut paths: Vec<_> = due.map(|(path, _)| path.clone()).collect();
        // A file that has changed is read when it does not change any more.
        paths.retain(|path| {
            let is_same =
                watched.read.get(path).is_some_and(|was| stamp(path).as_ref() == Some(was));
            if !is_same {
                watched.retries.remove(path);
            }
            is_same
        });
        if paths.is_empty() {
            return Ok(());
        }
        let _files = self.hold_files();
        self.deploy_files(paths, watched)
    }

    /// Deploy what is new in these files. The caller holds the files of the state folder.
    fn deploy_files(&self, paths: Vec<PathBuf>, watched: &mut Watched) -> io::Result<()> {
        let deploy = || {
            let FilesRead { found, unread, retryable } = self.read_files(paths.clone())?;
            let ids: BTreeMap<_, _> =
                found.iter().map(|file| (file.path.clone(), file.id.clone())).collect();
            {
                let mut files = self.folder.files();
                for path in paths.iter().filter(|path| !retryable.contains(path)) {
                    let Some(stamp) = watched.read.get(path) else { continue };
                    files.insert(path.clone(), (stamp.clone(), ids.get(path).cloned()));
                }
            }
            self.deploy_found(found, CompilePriority::Folder)?;
            Ok((ids, unread, retryable))
        };
        let (ids, unread, retryable) = match deploy() {
            Ok(read) => read,
            Err(error) => {
                // They are new again at the next look.
                watched.read.retain(|path, _| !paths.contains(path));
                return Err(error);
            }
        };
        watched.unread.retain(|path| !paths.contains(path));
        watched.unread.extend(unread);
        for path in paths {
            let before = watched.retries.remove(&path);
            let next = if retryable.contains(&path) {
                let failures = before.map_or(0, |retry| retry.failures).saturating_add(1);
                let next = Instant::now() + retry::pause(failures, rand::random());
                Some(FileRetry { failures, next })
            } else {
                let next = ids.get(&path).and_then(|id| self.next_attempt(id));
                next.map(|next| FileRetry { failures: 0, next })
            };
            if let Some(next) = next {
                watched.retries.insert(path, next);
            }
        }
        Ok(())
    }

    /// When a version that was never deployed is tried again. A deployed one needs no file for that.
    fn next_attempt(&self, id: &VersionId) -> Option<Instant> {
        match self.registry.load_state(id) {
            Some(LoadState::Failed(failure)) if !self.is_deployed(id) => failure.retry_at,
            _ => None,
        }
    }

    fn is_deployed(&self, id: &VersionId) -> bool {
        self.registry.state(&id.name).versions.contains_key(&id.version)
    }

    /// Deploy files that were read, if the rules allow it. If several have the same version, they are
    /// tried one after the other, in the order of their names, until one is proved.
    pub(super) fn deploy_found(
        &self,
        found: Vec<FoundArtifact>,
        urgency: CompilePriority,
    ) -> io::Result<()> {
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
        mut found: Vec<FoundArtifact>,
        urgency: CompilePriority,
        adoption: &Adoption,
    ) -> io::Result<()> {
        while !found.is_empty() {
            let refused: BTreeSet<_> = found.iter().map(|file| file.id.clone()).collect();
            let (accepted, deferred) = self.accept(found, urgency);
            found = deferred;
            let has_another_file = |id: &VersionId| found.iter().any(|file| file.id == *id);
            let is_accepted = |id: &VersionId| accepted.iter().any(|plan| plan.id == *id);
            for id in refused.iter().filter(|id| !is_accepted(id) && !has_another_file(id)) {
                adoption.end(id, false);
            }
            for plan in &accepted {
                self.registry.set_load_state(&plan.id, LoadState::Loading);
            }
            self.deploy_all(accepted, &|plan, is_ready| {
                if is_ready || !has_another_file(&plan.id) {
                    adoption.end(&plan.id, is_ready);
                }
            })?;
        }
        Ok(())
    }

    /// Read files in parallel and put the artifacts into the store.
    pub(super) fn read_files(&self, paths: Vec<PathBuf>) -> io::Result<FilesRead> {
        let all = Mutex::new(FilesRead::default());
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
                                all.retryable.push(path.clone());
                            }
                        }
                        LoadError::Panicked(_) => all.unread.push(path.clone()),
                        LoadError::Store(_) => all.retryable.push(path.clone()),
                        _ => {}
                    }
                    report(&path, &error.into());
                }
            }
        };
        run_parallel(paths, self.loader.engines.thread_stack_bytes(), &read)?;
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(all)
    }

    fn read_file(&self, path: &Path) -> Result<FoundArtifact, LoadError> {
        catch_panic(|| {
            let (artifact, received) = self.loader.store.receive_file::<LoadError>(path)?;
            let (id, digest) = (artifact.id().clone(), artifact.digest());
            let signature =
                artifact.signature().cloned().ok_or(LoadError::Signature(SignatureMismatch))?;
            let state = self.registry.state(&id.name);
            if let Some(received) = received
                && !state.withdrawn.contains(&digest)
            {
                self.loader.store.keep_received(received, digest)?;
            }
            Ok(FoundArtifact { path: path.to_owned(), id, digest, signature })
        })
    }

    /// The deployments of new versions that the rules allow, and the files that wait for the outcome of
    /// one of these deployments. Versions are checked in their order, names of files decide between equals.
    fn accept(
        &self,
        found: Vec<FoundArtifact>,
        urgency: CompilePriority,
    ) -> (Vec<Plan<'static>>, Vec<FoundArtifact>) {
        let mut digests = BTreeSet::new();
        let mut states = BTreeMap::<ModelName, ModelState>::new();
        let (mut new, mut deferred) = (Vec::<FoundArtifact>::new(), Vec::new());
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
                    let conflict = RolloutError::OtherContent(same.clone(), held.digest).into();
                    report(&file.path, &conflict);
                    self.refuse_conflict(&file.plan(urgency), &conflict);
                }
                // Its copy in the state folder may be damaged, which this file repairs.
                Some(_)
                    if matches!(self.registry.load_state(&file.id), Some(LoadState::Failed(_))) =>
                {
                    new.push(file);
                }
                // It is served already, or an operator has decided about it.
                Some(_) => {}
                None => {
                    let deployed = Deployed { digest: file.digest, stage: Stage::Deployed };
                    state.versions.insert(version.clone(), deployed);
                    new.push(file);
                }
            }
        }
        new.sort_by(|one, other| one.id.cmp(&other.id));
        let accepted = self.check_contracts(new, &mut deferred, urgency);
        deferred.sort_by(|one, other| one.path.cmp(&other.path));
        (accepted, deferred)
    }

    /// The contract step of the deployments: which of these versions keep what their numbers promise,
    /// compared with what is deployed. One that only breaks a promise in comparison with another one of
    /// them is deferred until it is known whether that one is proved.
    fn check_contracts(
        &self,
        new: Vec<FoundArtifact>,
        deferred: &mut Vec<FoundArtifact>,
        urgency: CompilePriority,
    ) -> Vec<Plan<'static>> {
        let mut states = BTreeMap::<ModelName, ModelState>::new();
        let mut accepted = Vec::new();
        for file in new {
            let FoundArtifact { id, digest, signature, .. } = &file;
            let decided = self.registry.state(&id.name);
            if let Err(error) = self.check_contract(&decided, id, signature) {
                self.refuse(&file.plan(urgency), &error);
                continue;
            }
            let state = states.entry(id.name.clone()).or_insert(decided);
            if self.check_contract(state, id, signature).is_err() {
                deferred.push(file);
                continue;
            }
            let (lower, _) = state.neighbours(&id.version);
            let found_below = lower.map(|lower| (lower.clone(), state.versions[lower].digest));
            let deployed = Deployed { digest: *digest, stage: Stage::Deployed };
            state.versions.insert(id.version.clone(), deployed);
            accepted.push(Plan { found_below, ..file.plan(urgency) });
        }
        accepted
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
        if let Err(error) =
            self.commit(model, &operation, &ChangeOptions::for_host("repository"), None)
        {
            let reason = error.failure().reason;
            tracing::error!(%model, %reason, "cannot make the highest version the stable one");
        }
    }
}

impl FoundArtifact {
    fn plan(&self, urgency: CompilePriority) -> Plan<'static> {
        let (id, digest) = (self.id.clone(), self.digest);
        Plan { id, digest, origin: Origin::Folder, urgency, is_stable: false, found_below: None }
    }
}

impl Watched {
    /// Whether every file of the folder was read, so that it is known which stored files are needed.
    fn is_complete(&self) -> bool {
        self.is_read && !self.is_missing && self.unread.is_empty()
    }

    /// The new and changed files that are to be read now.
    fn take_new(&mut self, stamps: BTreeMap<PathBuf, FileStamp>, at_once: bool) -> Vec<PathBuf> {
        self.read.retain(|path, _| stamps.contains_key(path));
        self.unread.retain(|path| stamps.contains_key(path));
        self.retries.retain(|path, _| stamps.contains_key(path));
        let mut new = Vec::new();
        let mut settling = BTreeMap::new();
        for (path, stamp) in stamps {
            if self.read.get(&path) == Some(&stamp) {
                continue;
            }
            if at_once || self.settling.get(&path) == Some(&stamp) {
                self.read.insert(path.clone(), stamp);
                new.push(path);
            } else {
                settling.insert(path, stamp);
            }
        }
        self.settling = settling;
        new
    }
}

/// Whether a file that cannot be read may become readable without a change of its stamp, because the
/// disk, the network or this process has a problem. A file of another kind, a dangling link and missing
/// permissions only become readable with a change.
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

    fn stamp(length: u64) -> FileStamp {
        FileStamp { inode: (1, 1), length, modified: (0, 0), changed: (0, 0) }
    }

    #[test]
    fn only_transient_failures_of_a_file_are_retried() {
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

    fn look(watched: &mut Watched, files: &[(&str, u64)], at_once: bool) -> Vec<String> {
        let stamps = files.iter().map(|(name, length)| (PathBuf::from(name), stamp(*length)));
        let new = watched.take_new(stamps.collect(), at_once);
        new.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn a_file_is_read_when_it_stops_changing_and_after_each_change() {
        let mut watched = Watched::default();
        assert_eq!(look(&mut watched, &[("a", 1)], true), ["a"]);
        assert!(look(&mut watched, &[("a", 1), ("b", 1)], false).is_empty());
        assert!(look(&mut watched, &[("a", 1), ("b", 2)], false).is_empty());
        assert_eq!(look(&mut watched, &[("a", 1), ("b", 2)], false), ["b"]);
        assert!(look(&mut watched, &[("a", 1), ("b", 2)], false).is_empty());
        assert!(look(&mut watched, &[("a", 2), ("b", 2)], false).is_empty());
        assert_eq!(look(&mut watched, &[("a", 2), ("b", 2)], false), ["a"]);
        // Gone and back again.
        assert!(look(&mut watched, &[("a", 2)], false).is_empty());
        assert!(look(&mut watched, &[("a", 2), ("b", 2)], false).is_empty());
        assert_eq!(look(&mut watched, &[("a", 2), ("b", 2)], false), ["b"]);
    }
}
