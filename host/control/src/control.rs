//! Changing what is served. There is one writer; a change is durable before it takes effect, and is
//! written into the history whoever makes it.
//!
//! [`deployment`] is the state machine through which every version gets into service; [`schedule`] runs
//! many deployments at once, [`folder`] starts them for the files of the repository folder, and
//! [`load_by_name`] for clients that load a model by its name. [`commit`] makes the other changes:
//! promotions, canaries, rollbacks.
//!
//! Deciding on a change is quick and waits only for the disk. Loading takes up to minutes and happens
//! before, under a lock of its version alone, so that a rollback never waits for a deployment. Whether a
//! change can take effect is decided under the lock of the writer: if it would use a version that is not
//! loaded, the version is loaded and the change is decided again. A change that fails changes nothing.

mod adoption;
mod change;
mod commit;
mod deployment;
mod error;
mod folder;
mod folder_index;
mod folder_on_demand;
#[cfg(test)]
mod interleavings;
mod keys;
mod load_by_name;
mod maintenance;
mod retry;
mod schedule;
mod state;
mod version_locks;

pub use change::{ChangeOptions, ChangeOutcome, ChangeReport, DeployReport, Replay};
pub use deployment::DEPLOY_STEPS;
pub use error::{ControlError, KeyChangeError};
pub use folder::watch_folder;
pub use keys::{KeyChangeOutcome, KeyChangeReport, NewKey};
pub use maintenance::run_maintenance;
pub use state::{Control, DEFAULT_PARKED};
