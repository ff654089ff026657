//! Which versions of a model are served, which traffic they get, and how operators may change that.
//!
//! Pure: a [`ModelState`] and an [`Operation`] give the next state, or the reason why the operation is
//! refused. Nothing is loaded, stored or logged here. Weights are parts per million.

mod operation;
mod rules;
mod share;
mod state;
#[cfg(test)]
mod tests;

pub use operation::{Operation, Promotion, RolloutError, Status, Transition, VersionUse};
pub use rules::{Decision, Rules, apply, decide};
pub use share::{Share, ShareError};
pub use state::{Deployed, ModelState, Routing, ShadowShare, Stage, WHOLE};
