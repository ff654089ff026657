//! Tests that go through all interleavings of concurrent changes, step by step as [`Control`] makes them.
//! The decisions ([`rollout::decide`]) and the registry ([`TestRegistryState`]) are the code of the server; a
//! version is a mere number here, so that all interleavings can be searched.
//!
//! A step is what happens atomically: the work under one lock, and each start and end of loading.
//!
//! [`Control`]: super::state::Control

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use semver::Version;

use crate::registry::{TestLoadState, TestRegistryState};
use crate::rollout::{
    self, Decision, ModelState, Operation, Promotion, RolloutError, Rules, ShadowShare,
};
use guesthouse_artifact::Digest;
use guesthouse_model::{ModelName, VersionId};

type Decide = fn(&ModelState, &Operation, &Rules<'_>) -> Result<Decision, RolloutError>;

/// A change that a process makes.
#[derive(Debug, Clone)]
enum Task {
    Deploy(Version, Promotion),
    Change(Operation),
    /// Load the model by its name.
    Load,
    /// A start: load what the ledger says.
    Restore,
}

/// How far a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Start,
    /// A deployment has seen that its version is loaded.
    SeenLoaded,
    /// A change needs this version, which is not loaded.
    Missing(Version),
    /// Another process has the lock of the version.
    Waiting(Version),
    Loading(Version),
    Commit,
    Done,
}

#[derive(Debug, Clone)]
struct Process {
    task: Task,
    at: At,
    locks: BTreeSet<Version>,
    /// Versions that are loaded and not published.
    loaded: Vec<Version>,
    /// Versions that a start has yet to load.
    left: Vec<Version>,
}

#[derive(Clone)]
struct World {
    registry: TestRegistryState<Version>,
    processes: Vec<Process>,
    decide: Decide,
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn model() -> ModelName {
    "model".parse().unwrap()
}

fn id(version: &Version) -> VersionId {
    VersionId { name: model(), version: version.clone() }
}

fn digest(version: &Version) -> Digest {
    Digest::from_content(version.to_string().as_bytes())
}

impl Process {
    fn new(task: Task) -> Self {
        let (locks, loaded, left) = (BTreeSet::new(), Vec::new(), Vec::new());
        Self { task, at: At::Start, locks, loaded, left }
    }

    fn operation(&self) -> Option<Operation> {
        match &self.task {
            Task::Deploy(version, promotion) => Some(Operation::Deploy {
                version: version.clone(),
                digest: digest(version),
                promotion: *promotion,
            }),
            Task::Change(operation) => Some(operation.clone()),
            Task::Load | Task::Restore => None,
        }
    }
}

impl World {
    fn state(&self) -> ModelState {
        self.registry.states.get(&model()).cloned().unwrap_or_default()
    }

    fn is_loaded(&self, version: &Version) -> bool {
        self.registry.is_loaded(&id(version))
    }

    fn is_free(&self, version: &Version) -> bool {
        !self.processes.iter().any(|process| process.locks.contains(version))
    }

    /// The state after the next step of a process; none if it waits or is done.
    fn after(&self, index: usize) -> Option<Self> {
        let mut world = self.clone();
        let mut process = world.processes[index].clone();
        let at = world.step(&mut process)?;
        if at == At::Done {
            world.finish(&mut process);
        }
        process.at = at;
        world.processes[index] = process;
        Some(world)
    }

    fn step(&mut self, process: &mut Process) -> Option<At> {
        match (process.at.clone(), process.task.clone()) {
            (At::Start, Task::Deploy(version, _)) => {
                self.lock(process, &version)?;
                Some(if self.is_loaded(&version) {
                    At::SeenLoaded
                } else {
                    self.begin_deploying(&version)
                })
            }
            (At::SeenLoaded, Task::Deploy(version, _)) => Some(match self.commit(process) {
                Some(_missing) => self.begin_deploying(&version),
                None => At::Done,
            }),
            (At::Start, Task::Change(_)) | (At::Commit, _) => Some(match self.commit(process) {
                Some(missing) => At::Missing(missing),
                None => At::Done,
            }),
            (At::Missing(version), _) => Some(if self.lock(process, &version).is_some() {
                At::Loading(version)
            } else {
                if matches!(process.task, Task::Change(_)) {
                    process.loaded.clear();
                    process.locks.clear();
                }
                At::Waiting(version)
            }),
            (At::Waiting(version), _) => {
                self.lock(process, &version)?;
                Some(At::Loading(version))
            }
            (At::Start, Task::Load) => {
                let state = self.state();
                let stable = state.routing.stable.clone();
                let Some(version) = stable.or(state.versions.keys().next_back().cloned()) else {
                    return Some(At::Done);
                };
                Some(At::Waiting(version))
            }
            (At::Start, Task::Restore) => {
                process.left =
                    self.registry.missing().into_iter().map(|(id, _)| id.version).collect();
                Some(self.next_to_restore(process))
            }
            (At::Loading(version), task) => {
                let is_deploying = matches!(task, Task::Deploy(..));
                let is_there = self.state().versions.contains_key(&version) || is_deploying;
                if is_there && !self.is_loaded(&version) {
                    process.loaded.push(version);
                }
                match task {
                    Task::Deploy(..) | Task::Change(_) => Some(At::Commit),
                    Task::Load => Some(At::Done),
                    Task::Restore => {
                        self.offer(process);
                        process.locks.clear();
                        Some(self.next_to_restore(process))
                    }
                }
            }
            (At::SeenLoaded | At::Done, _) => None,
        }
    }

    /// Lock a version, unless another process has locked it.
    fn lock(&self, process: &mut Process, version: &Version) -> Option<()> {
        self.is_free(version).then(|| process.locks.insert(version.clone())).map(drop)
    }

    fn begin_deploying(&mut self, version: &Version) -> At {
        self.registry.set_load_state(&id(version), Some(TestLoadState::Loading));
        At::Loading(version.clone())
    }

    fn next_to_restore(&mut self, process: &mut Process) -> At {
        match process.left.pop() {
            Some(version) => At::Waiting(version),
            None => {
                self.registry.loading = false;
                At::Done
            }
        }
    }

    /// Decide and publish. Returns the version that is missing, if one is.
    fn commit(&mut self, process: &mut Process) -> Option<Version> {
        let (state, operation) = (self.state(), process.operation()?);
        let is_ready =
            |version: &Version| process.loaded.contains(version) || self.is_loaded(version);
        let rules = Rules { is_ready: &is_ready, max_parked: 0, revision: state.revision + 1 };
        let next = match (self.decide)(&state, &operation, &rules) {
            Ok(Decision::Load(missing)) => return Some(missing),
            Ok(Decision::Apply(outcome)) if outcome.state != state => outcome.state,
            Ok(Decision::Apply(_)) | Err(_) => return None,
        };
        let loaded = std::mem::take(&mut process.loaded).into_iter();
        let loaded = loaded.map(|version| (id(&version), Arc::new(version)));
        drop(self.registry.decide(&model(), next, loaded.collect()));
        None
    }

    fn offer(&mut self, process: &mut Process) {
        for version in process.loaded.drain(..) {
            drop(self.registry.insert_loaded(id(&version), digest(&version), Arc::new(version)));
        }
    }

    fn finish(&mut self, process: &mut Process) {
        self.offer(process);
        process.locks.clear();
        if let Task::Deploy(version, _) = &process.task
            && matches!(self.registry.load_states.get(&id(version)), Some(TestLoadState::Loading))
        {
            self.registry.set_load_state(&id(version), None);
        }
    }

    /// What is wrong with this state. `is_over` says whether all processes are done.
    fn violation(&self, is_over: bool) -> Option<String> {
        let state = self.state();
        let is_loaded = |version: &&Version| self.is_loaded(version);
        let routed = state.versions.keys().filter(|version| state.routing.uses(version));
        // A split of the configuration may name a version that is not deployed; others get its share.
        let is_configured =
            |it: &Version| state.configured.as_ref().is_some_and(|split| split.contains_key(it));
        let is_lost = |it: &Version| !state.versions.contains_key(it) && !is_configured(it);
        let lost = state.routing.shares().find(|(it, _)| is_lost(it));
        if !self.registry.loading {
            if let Some(version) = routed.clone().find(|version| !is_loaded(version)) {
                return Some(format!("{version} is routed to and not loaded"));
            }
            if self.registry.is_stable_pending() {
                return Some("a stable version is not loaded".to_owned());
            }
        }
        if let Some((version, _)) = lost {
            return Some(format!("{version} is routed to and not deployed"));
        }
        if !is_over {
            return None;
        }
        let wanted: BTreeSet<_> = state.loaded().map(|(version, _)| version.clone()).collect();
        let slots: BTreeSet<_> =
            self.registry.load_states.keys().map(|id| id.version.clone()).collect();
        let all_loaded = slots.iter().all(|version| self.is_loaded(version));
        let is_good = wanted == slots && all_loaded;
        (!is_good).then(|| format!("to be loaded: {wanted:?}; loaded: {slots:?}"))
    }

    fn key(&self) -> String {
        let Self { registry, processes, .. } = self;
        let loaded: Vec<_> =
            registry.load_states.iter().map(|(id, load_state)| (&id.version, load_state)).collect();
        format!("{:?} {loaded:?} {} {processes:?}", self.state(), registry.loading)
    }
}

/// Search all interleavings. The error describes the first state with something wrong.
fn search(world: &World) -> Result<usize, String> {
    let mut seen = HashSet::from([world.key()]);
    let mut left = vec![world.clone()];
    while let Some(world) = left.pop() {
        let next: Vec<_> =
            (0..world.processes.len()).filter_map(|index| world.after(index)).collect();
        let is_over = world.processes.iter().all(|process| process.at == At::Done);
        let stuck = (next.is_empty() && !is_over).then(|| "a deadlock".to_owned());
        if let Some(what) = stuck.or(world.violation(is_over)) {
            return Err(format!("{what}: {}", world.key()));
        }
        left.extend(next.into_iter().filter(|world| seen.insert(world.key())));
    }
    Ok(seen.len())
}

fn deploy(text: &str, promotion: Promotion) -> Task {
    Task::Deploy(version(text), promotion)
}

fn promote(text: &str) -> Task {
    Task::Change(Operation::Promote { version: version(text), supersede: true })
}

fn undeploy(text: &str) -> Task {
    Task::Change(Operation::Undeploy { version: version(text) })
}

fn rollback(to: Option<&str>) -> Task {
    Task::Change(Operation::Rollback { to: to.map(version) })
}

/// The state after these tasks, one after the other.
fn world_after(tasks: &[Task]) -> World {
    let registry = TestRegistryState::new(BTreeMap::new());
    let mut world = World { registry, processes: Vec::new(), decide: rollout::decide };
    world.registry.loading = false;
    for task in tasks {
        world.processes = vec![Process::new(task.clone())];
        while let Some(next) = world.after(0) {
            world = next;
        }
    }
    world.processes.clear();
    world
}

/// The changes that operators and tools make.
fn tasks() -> Vec<Task> {
    let candidate =
        |text| Operation::Canary { version: version(text), weight: 100_000, supersede: true };
    let shadow = ShadowShare { version: version("1.0.0"), share: 1 };
    let split = BTreeMap::from([(version("1.0.0"), 400_000), (version("1.1.0"), 600_000)]);
    let operations = [
        candidate("1.0.0"),
        candidate("1.1.0"),
        Operation::Shadow(Some(shadow)),
        Operation::Configure { split: Some(split) },
        Operation::Adopt { ready: vec![version("1.0.0"), version("1.1.0")] },
    ];
    let mut tasks = vec![
        deploy("1.0.0", Promotion::IfFirst),
        deploy("1.1.0", Promotion::Yes),
        deploy("1.2.0", Promotion::No),
        promote("1.1.0"),
        promote("1.2.0"),
        rollback(None),
        rollback(Some("1.0.0")),
        undeploy("1.0.0"),
        undeploy("1.1.0"),
        undeploy("1.2.0"),
        Task::Load,
    ];
    tasks.extend(operations.map(Task::Change));
    tasks
}

/// The initial states: two versions of which one is stable, and three of which two are retired.
fn initial_worlds() -> [World; 2] {
    let first = deploy("1.0.0", Promotion::IfFirst);
    let two = [first.clone(), deploy("1.1.0", Promotion::No)];
    let three = [first, deploy("1.1.0", Promotion::Yes), deploy("1.2.0", Promotion::Yes)];
    [world_after(&two), world_after(&three)]
}

/// Search any three tasks at once, with repetition.
fn every_three(world: &World, more: &[Task]) -> Result<usize, String> {
    let (tasks, mut count) = (tasks(), 0);
    for (one, first) in tasks.iter().enumerate() {
        for (two, second) in tasks.iter().enumerate().skip(one) {
            for third in tasks.iter().skip(two) {
                let all = [first, second, third].into_iter().chain(more);
                let processes = all.cloned().map(Process::new).collect();
                count += search(&World { processes, ..world.clone() })?;
            }
        }
    }
    Ok(count)
}

#[test]
fn no_interleaving_routes_to_an_unloaded_version() {
    for world in initial_worlds() {
        assert!(world.violation(true).is_none());
        let count = every_three(&world, &[]).unwrap_or_else(|what| panic!("{what}"));
        assert!(count > 10_000, "{count}");
    }
}

#[test]
fn no_interleaving_with_a_start_routes_to_an_unloaded_version() {
    for world in initial_worlds() {
        let registry = TestRegistryState::new(world.registry.states.clone());
        let tasks = tasks();
        for (index, one) in tasks.iter().enumerate() {
            for other in &tasks[index..] {
                let all = [one.clone(), other.clone(), Task::Restore];
                let processes = all.map(Process::new).into();
                let world =
                    World { registry: registry.clone(), processes, decide: rollout::decide };
                search(&world).unwrap_or_else(|what| panic!("{what}"));
            }
        }
    }
}

#[test]
fn the_search_detects_a_stale_decision() {
    fn careless(
        state: &ModelState,
        operation: &Operation,
        rules: &Rules<'_>,
    ) -> Result<Decision, RolloutError> {
        rollout::apply(state, operation, rules).map(Decision::Apply)
    }
    let [mut world, _] = initial_worlds();
    world.decide = careless;
    world.processes = [deploy("1.1.0", Promotion::Yes), undeploy("1.1.0")].map(Process::new).into();
    let wrong = search(&world).unwrap_err();
    assert!(wrong.starts_with("1.1.0 is routed to and not loaded"), "{wrong}");
}
