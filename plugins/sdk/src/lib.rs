//! The SDK for guests.
//!
//! A guest is a type with two functions, [`Guest::init`] and [`Guest::predict`], and one line,
//! [`export!`]:
//!
//! ```ignore
//! use guesthouse_guest::{Assets, Batch, Error, Field, Guest, PredictError, Signature, Tensor};
//!
//! struct Length;
//!
//! impl Guest for Length {
//!     fn init(_assets: &Assets) -> Result<(Self, Signature), Error> {
//!         let text = Field::text("text", "the text to measure").length(1, 2000);
//!         let length = Field::int64("length", "its length in characters");
//!         Ok((Self, Signature::new([text], [length]).max_batch_size(64)))
//!     }
//!
//!     fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError> {
//!         let lengths = batch.texts("text")?.iter().map(|text| text.chars().count() as i64);
//!         Ok(vec![Tensor::int64("length", lengths)])
//!     }
//! }
//!
//! guesthouse_guest::export!(Length);
//! ```
//!
//! `init` runs once, when the version is deployed. The host takes a snapshot of the memory that it
//! leaves, and every instance starts from this snapshot. The contract itself is `wit/model.wit`.
//!
//! Do not use a `HashMap` whose keys callers choose: the hash seeds are part of the snapshot.

#[cfg(feature = "tract")]
mod arithmetic;
mod assets;
mod batch;
#[doc(hidden)]
pub mod bindings;
#[doc(hidden)]
pub mod glue;
pub mod log;
#[cfg(all(feature = "allocator", target_arch = "wasm32"))]
mod memory;
mod signature;
mod tensor;
#[cfg(feature = "tract")]
mod tract;

pub use assets::Assets;
pub use batch::{Batch, PredictError, Rejections};
pub use bindings::guesthouse::model::types::Datatype;
pub use signature::{Field, Signature};
pub use tensor::Tensor;
#[cfg(feature = "tract")]
pub use tract::{
    Dimension, GraphValue, Model, ModelBuilder, ModelInput, ModelOutputs, OnnxFile, OperationTime,
};
#[cfg(feature = "tract")]
pub use tract_onnx;

/// An error of `init`: a lower-case fragment that says what is wrong with the artifact.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// Create an error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// For `init` functions that run the code of `predict` once.
impl From<PredictError> for Error {
    fn from(error: PredictError) -> Self {
        Self(match error {
            PredictError::Rejected(rejections) => format!("{rejections:?}"),
            PredictError::Failed(reason) => reason,
        })
    }
}

/// A version of a model, to be implemented by the guest.
pub trait Guest: Sized + 'static {
    /// Read the assets, build what [`Guest::predict`] needs, and declare the signature.
    ///
    /// # Errors
    /// Why the artifact is unusable; the host rejects the version with this text.
    fn init(assets: &Assets) -> Result<(Self, Signature), Error>;

    /// Predict for a batch that the host has validated against the signature.
    ///
    /// # Errors
    /// [`PredictError::Rejected`] if rows are not acceptable, [`PredictError::Failed`] otherwise.
    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError>;
}

/// Export a type that implements [`Guest`] from the component.
#[macro_export]
macro_rules! export {
    ($guest:ty) => {
        const _: () = {
            static GUEST: ::std::sync::OnceLock<$guest> = ::std::sync::OnceLock::new();

            struct Component;

            impl $crate::bindings::exports::guesthouse::model::lifecycle::Guest for Component {
                fn init() -> Result<$crate::glue::Signature, String> {
                    $crate::glue::init(&GUEST)
                }
            }

            impl $crate::bindings::exports::guesthouse::model::predict::Guest for Component {
                fn predict(
                    inputs: Vec<$crate::glue::Tensor>,
                ) -> Result<Vec<$crate::glue::Tensor>, $crate::glue::PredictError> {
                    $crate::glue::predict(&GUEST, inputs)
                }
            }

    $crate::bindings::export_component!(Component with_types_in $crate::bindings);
        };
    };
}
