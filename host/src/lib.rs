//! Guesthouse: a model server whose model versions are sandboxed WebAssembly components.
//!
//! `ARCHITECTURE.md` beside this crate is the map: how a request and a version travel through the
//! modules below. They stand here in the order in which a reader should meet them.
#![cfg_attr(rustfmt, rustfmt_skip)]

pub mod terminal;
pub mod clock;
pub mod priority;
pub mod machine;
pub mod model;
pub mod contract;
pub mod record;
pub mod measure;
pub mod stages;
pub(crate) mod durable;
pub mod artifact;
pub mod guest;
pub mod preinit;
pub mod store;
pub mod typed;
pub mod pool;
pub mod version;
pub mod inference;
pub mod traffic;
pub mod shadow;
pub mod rollout;
pub mod rate;
pub mod keys;
pub mod ledger;
pub mod router;
pub mod registry;
pub mod control;
pub mod observe;
pub mod config;
pub mod edge;
pub mod admin;
pub mod server;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
