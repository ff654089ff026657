//! The value types that everything else speaks in: names, versions, selectors, tensors,
//! signatures.
//!
//! Pure data: no I/O, no clocks, no knowledge of wasmtime or HTTP. What is in here has been
//! checked, so that the rest of the host need not.

mod name;
mod selector;
mod signature;
mod tensor;

pub use name::{ModelName, NameError, VersionId};
pub use selector::{Channel, Selector, SelectorError};
pub(crate) use signature::MAX_FIELDS;
pub use signature::{Constraint, Field, Signature, SignatureError};
pub use tensor::{Datatype, Tensor, TensorError, bytes_elements};
