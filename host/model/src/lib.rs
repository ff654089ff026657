//! The value types of Guesthouse: names, versions, selectors, tensors, signatures, and the JSON
//! form of rows.
//!
//! Pure data: no I/O, no clocks, no knowledge of wasmtime or HTTP. Values are validated when they
//! are created or by a `check` method, so that other code can rely on them.

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
