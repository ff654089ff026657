//! The runtime of Guesthouse: it compiles model versions and runs them in sandboxed instances.
//!
//! The modules stand in the order in which a reader should meet them. Only this crate knows
//! wasmtime. It knows nothing of sockets, of what operators decide, or of which version answers.
#![cfg_attr(rustfmt, rustfmt_skip)]

pub mod clock;
pub mod priority;
pub mod machine;
pub mod measure;
pub mod stages;
pub mod durable;
pub mod guest;
pub mod preinit;
pub mod store;
pub mod pool;
pub mod version;
pub mod inference;
