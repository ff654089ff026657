//! Running many deployments at once. What is compiled already is loaded first, by as many threads as
//! there are cores; the rest waits for the compiler, small artifacts beside large ones, as
//! [`queue`](guesthouse_runtime::preinit::queue) allows.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::deployment::{Deployment, Origin, Plan, Progressed, State};
use super::state::Control;
use super::version_locks::VersionLock;
use crate::registry::LoadState;
use guesthouse_model::VersionId;
use guesthouse_runtime::preinit::queue::{CompileJob, CompilePriority};

/// Small artifacts that are compiled at once, of those that are scheduled together: two, so that one
/// that is slow does not hold up the others until it has turned out not to be small.
const SMALL_WORKERS: usize = 2;

/// Called with each plan when it has ended, and whether the version serves; on the thread that ran it.
type Ended<'a> = &'a (dyn Fn(&Plan<'_>, bool) + Sync);

/// What has to be compiled, the first ones first.
struct Uncompiled<'a> {
    small: VecDeque<(Plan<'a>, CompileJob)>,
    large: VecDeque<(Plan<'a>, CompileJob)>,
    /// Small ones under way: each may yet turn out to be large.
    small_running: usize,
}

impl Control {
    /// Load what was served when the ledger was last written. If anything was, the server is ready when
    /// it is loaded, and the repository folder is read later.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub fn restore(&self) -> io::Result<()> {
        self.load_absent()?;
        if self.registry.snapshot().servables().next().is_some() {
            self.registry.finish_loading();
        }
        Ok(())
    }

    /// Load the versions that should be loaded, and neither are nor have failed.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub(super) fn load_absent(&self) -> io::Result<()> {
        let _files = self.hold_files();
        let plans = self.registry.missing().into_iter().filter_map(|(id, _)| self.restore_plan(id));
        self.deploy_all(plans.collect(), &|_, _| {})
    }

    /// Try deployed versions again whose pause after a failure is over. Versions that were never deployed
    /// are tried again with their files.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub(super) fn retry_deployed(&self) -> io::Result<()> {
        if self.due_plans().is_empty() {
            return Ok(());
        }
        let _files = self.hold_files();
        // Somebody may have loaded or undeployed them while this waited.
        let plans = self.due_plans();
        plans.iter().for_each(|plan| self.registry.set_load_state(&plan.id, LoadState::Loading));
        let ids: Vec<_> = plans.iter().map(|plan| plan.id.clone()).collect();
        self.deploy_all(plans, &|_, _| {})?;
        // One that was undeployed meanwhile was left out.
        for id in ids {
            let is_deployed = self.registry.state(&id.name).versions.contains_key(&id.version);
            if !is_deployed && matches!(self.registry.load_state(&id), Some(LoadState::Loading)) {
                self.registry.reset_load_state(&id, None);
            }
        }
        Ok(())
    }

    /// Deployed versions whose pause after a failure is over.
    fn due_plans(&self) -> Vec<Plan<'static>> {
        self.retries.retain(|id| {
            matches!(self.registry.load_state(id), Some(LoadState::Failed(_) | LoadState::Loading))
        });
        let due = self.retries.due(Instant::now()).into_iter();
        let is_failed =
            |id: &VersionId| matches!(self.registry.load_state(id), Some(LoadState::Failed(_)));
        let is_wanted = |id: &VersionId| {
            let state = self.registry.state(&id.name);
            state.loaded().any(|(version, _)| *version == id.version)
        };
        due.filter(|id| is_failed(id) && is_wanted(id))
            .filter_map(|id| self.restore_plan(id))
            .collect()
    }

    fn restore_plan(&self, id: VersionId) -> Option<Plan<'static>> {
        let state = self.registry.state(&id.name);
        Plan::recorded(id, &state, Origin::Restore, CompilePriority::Restore)
    }

    /// Run deployments to their end. Those whose version somebody else has loaded or withdrawn meanwhile
    /// are left out.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub(super) fn deploy_all(&self, mut plans: Vec<Plan<'_>>, ended: Ended<'_>) -> io::Result<()> {
        if plans.is_empty() {
            return Ok(());
        }
        // The highest version of a model first: it is the one that is asked for.
        let order = |plan: &Plan<'_>| {
            let VersionId { name, version } = plan.id.clone();
            (!plan.is_stable, name, Reverse(version))
        };
        plans.sort_by_key(order);
        let uncompiled = Mutex::new(Vec::new());
        let find = |plan| {
            if let Some(job) = self.advance(&plan, State::Checked, ended) {
                uncompiled.lock().unwrap_or_else(PoisonError::into_inner).push((plan, job));
            }
        };
        // Golden examples run on these threads: a guest may use all of its call stack.
        run_parallel(plans, self.loader.engines.thread_stack_bytes(), &find)?;
        let mut uncompiled = uncompiled.into_inner().unwrap_or_else(PoisonError::into_inner);
        uncompiled.sort_by_key(|(plan, _)| order(plan));
        self.compile_all(uncompiled, ended)
    }

    /// Advance a deployment until the compiler is needed, for the job that is returned, or to the end.
    /// While it waits for the compiler, somebody else may load its version.
    fn advance(&self, plan: &Plan<'_>, state: State, ended: Ended<'_>) -> Option<CompileJob> {
        let _lock = self.lock_if_needed(plan)?;
        match Deployment::new(self, plan).advance(state) {
            Progressed::Waits(job) => Some(job),
            Progressed::Ended(outcome) => {
                ended(plan, outcome.is_ok());
                None
            }
        }
    }

    /// The lock of a version, unless there is nothing to load any more: somebody else has loaded it,
    /// tried to, or withdrawn it.
    fn lock_if_needed(&self, plan: &Plan<'_>) -> Option<VersionLock<'_>> {
        let lock = self.locks.lock(&plan.id);
        let is_over = match self.registry.load_state(&plan.id) {
            Some(LoadState::Loaded(_)) => true,
            // A file of the folder may have failed before, and is tried again.
            Some(LoadState::Failed(_)) => matches!(plan.origin, Origin::Restore),
            Some(LoadState::Loading) | None => false,
        };
        let is_withdrawn = self.registry.state(&plan.id.name).withdrawn.contains(&plan.digest);
        (!is_over && !is_withdrawn).then_some(lock)
    }

    fn compile_all(
        &self,
        uncompiled: Vec<(Plan<'_>, CompileJob)>,
        ended: Ended<'_>,
    ) -> io::Result<()> {
        if uncompiled.is_empty() {
            return Ok(());
        }
        let (small, large): (Vec<_>, Vec<_>) =
            uncompiled.into_iter().partition(|(_, job)| job.is_small());
        let queues = Uncompiled { small: small.into(), large: large.into(), small_running: 0 };
        let (queues, changed) = (Mutex::new(queues), Condvar::new());
        let lock = || queues.lock().unwrap_or_else(PoisonError::into_inner);
        let compile_small = || {
            loop {
                let mut queues = lock();
                let Some((plan, job)) = queues.small.pop_front() else { break };
                queues.small_running += 1;
                drop(queues);
                let large = self.advance(&plan, State::Uncompiled(job), ended);
                let mut queues = lock();
                queues.small_running -= 1;
                queues.large.extend(large.map(|job| (plan, job)));
                changed.notify_all();
            }
        };
        let compile_large = || {
            loop {
                let may_come = |queues: &mut Uncompiled<'_>| {
                    let is_small_left = queues.small_running > 0 || !queues.small.is_empty();
                    queues.large.is_empty() && is_small_left
                };
                let waited = changed.wait_while(lock(), may_come);
                let next = waited.unwrap_or_else(PoisonError::into_inner).large.pop_front();
                let Some((plan, job)) = next else { break };
                self.advance(&plan, State::Uncompiled(job), ended);
            }
        };
        let thread = || {
            let stack = self.loader.engines.thread_stack_bytes();
            thread::Builder::new().name("load".to_owned()).stack_size(stack)
        };
        thread::scope(|scope| {
            for _ in 0..SMALL_WORKERS {
                thread().spawn_scoped(scope, compile_small)?;
            }
            thread().spawn_scoped(scope, compile_large).map(drop)
        })
    }
}

/// Run `work` on each item, the first ones first, on as many threads as there are cores.
///
/// # Errors
/// The operating system gives no more threads.
pub(super) fn run_parallel<T: Send>(
    mut items: Vec<T>,
    stack: usize,
    work: &(dyn Fn(T) + Sync),
) -> io::Result<()> {
    // Taken from the end.
    items.reverse();
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).pop();
    thread::scope(|scope| {
        for _ in 0..guesthouse_runtime::machine::cores() {
            thread::Builder::new().stack_size(stack).spawn_scoped(scope, || {
                while let Some(item) = next() {
                    work(item);
                }
            })?;
        }
        Ok(())
    })
}
