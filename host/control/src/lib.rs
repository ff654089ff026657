//! The control plane of Guesthouse: what operators decide, what is loaded, and which version answers.
//!
//! The modules are listed in reading order. This crate runs guests through
//! the runtime only, and knows nothing of sockets.
#![cfg_attr(rustfmt, rustfmt_skip)]

pub mod traffic;
pub mod shadow;
pub mod rollout;
pub mod rate;
pub mod keys;
pub mod ledger;
pub mod router;
pub mod registry;
pub mod control;
