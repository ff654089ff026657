//! What the author of a guest writes against.
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
//! `init` runs once, when the version is deployed; the host snapshots the memory it leaves, and
//! every instance starts from that snapshot. The contract itself is `wit/model.wit`.
//!
//! No `HashMap` keyed by what callers send: hash seeds are frozen into the snapshot.

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
pub use tract::{Model, ModelBuilder, ModelInput, ModelOutputs};
#[cfg(feature = "tract")]
pub use tract_onnx;

/// What goes wrong in `init`: a lower-case fragment that says what is wrong with the artifact.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// An error that reads `message`.
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

/// For running `predict`'s own code once in `init`.
impl From<PredictError> for Error {
    fn from(error: PredictError) -> Self {
        Self(match error {
            PredictError::Rejected(rejections) => format!("{rejections:?}"),
            PredictError::Failed(reason) => reason,
        })
    }
}

/// One model version: what a guest's author implements.
pub trait Guest: Sized + 'static {
    /// Read the assets, build what [`Guest::predict`] needs and say what it takes and gives.
    ///
    /// # Errors
    /// Whatever makes the artifact unusable; the host refuses the version with this text.
    fn init(assets: &Assets) -> Result<(Self, Signature), Error>;

    /// Outputs for a batch that the host has validated against the signature.
    ///
    /// # Errors
    /// [`PredictError::Rejected`] for rows through the caller's fault, else
    /// [`PredictError::Failed`].
    fn predict(&self, batch: &Batch) -> Result<Vec<Tensor>, PredictError>;
}

/// Turn a type that implements [`Guest`] into the component's exports.
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
