//! Guesthouse: a model server whose model versions are sandboxed WebAssembly components.
//!
//! `ARCHITECTURE.md` beside this crate is the map: how a request and a version travel through the
//! modules below, which stand here in the order a reader should meet them.

pub mod artifact;
pub mod guest;
pub mod model;
pub mod observe;
pub mod preinit;
pub mod store;
