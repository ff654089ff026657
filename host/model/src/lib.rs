//! The value types that everything else speaks in: names, versions, selectors, tensors,
//! signatures.
//!
//! Pure data: no I/O, no clocks, no knowledge of wasmtime or HTTP. What is in here has been
//! checked, so that the rest of the host need not.

pub mod contract;
mod name;
pub mod record;
mod selector;
mod signature;
mod tensor;
pub mod terminal;

pub use name::{ModelName, NameError, VersionId};
pub use selector::{Channel, Selector, SelectorError};
pub use signature::{Constraint, Field, MAX_FIELDS, Signature, SignatureError};
pub use tensor::{Datatype, Tensor, TensorError, bytes_elements};
