//! Guests on wasmtime: the engines, the linked imports, instances and their calls, and the faults
//! of a call.
//!
//! Only this module and `preinit` know wasmtime. Every entry into guest code (instantiation with
//! its `start` functions, `init`, `predict`, and the calls of the canonical ABI around them) is
//! bounded by an epoch deadline, a memory limit and a log budget. After most faults the instance
//! must be dropped, because a trap leaves its store in an undefined state. How many instances there
//! are is left to `pool`.

mod arithmetic;
mod bindings;
mod compiled_module;
mod convert;
mod engine;
mod fault;
mod instance;
mod limits;
mod linker;
mod samples;
mod state;
mod stop;
mod ticker;

pub use arithmetic::{ArithmeticUsage, FunctionUsage};
pub(crate) use bindings::Model;
pub use compiled_module::{CompiledCode, CompiledModule};
pub use convert::{MAX_REJECTIONS, signature_from_wit};
pub use engine::{Engine, EngineError, EngineLimits, Engines};
pub use fault::{Fault, Rejection, TrapKind};
pub use guesthouse_arithmetic::Backend;
pub use instance::{Instance, LoadedComponent};
pub use limits::{DEFAULT_START_TIME, InstanceLimits};
pub(crate) use linker::{NotInSnapshot, Phase, code_import, link_modules, linker};
pub use samples::{FunctionSamples, GuestFunction};
pub(crate) use state::HostState;
pub use stop::{CancelOnDrop, StopReason, StopSignal};
