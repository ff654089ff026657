//! Guests as wasmtime sees them: the engine, what a guest is linked to, one instance and its calls,
//! and what can go wrong in one.
//!
//! Only this module and `preinit` know wasmtime. Every entry into guest code (instantiation, with the
//! `start` functions that run in it, `init`, `predict`, and what the canonical ABI calls around them)
//! is bounded by an epoch deadline, a memory limit and a log budget; after any fault the instance must be dropped, because a trap poisons its
//! store. How many instances there are is left to `pool`.

mod bindings;
mod convert;
mod engine;
mod fault;
mod instance;
mod limits;
mod linker;
mod state;
mod stop;
mod ticker;

pub(crate) use bindings::Model;
pub use convert::{MAX_REJECTIONS, signature_from_wit};
pub use engine::{Engine, EngineError, EngineLimits, Engines};
pub use fault::{Fault, Rejection, TrapKind};
pub use instance::{Instance, LoadedComponent};
pub use limits::{DEFAULT_START_TIME, InstanceLimits};
pub(crate) use linker::{NotInSnapshot, Phase, linker};
pub(crate) use state::HostState;
pub use stop::{CancelOnDrop, Stop, StopReason};
