//! Connects the generated bindings with the guest's type. Guests do not use it directly.
//!
//! It installs the panic hook, which writes to the host's log, because a snapshot must not contain
//! handles of standard streams.

use std::sync::OnceLock;

pub use crate::bindings::guesthouse::model::types::{PredictError, Signature, Tensor};
use crate::{Assets, Batch, Guest, log};

/// Run the guest's `init` and store the guest.
///
/// # Errors
/// The guest's error, or an error if `init` is called twice.
pub fn init<G: Guest>(guest: &OnceLock<G>) -> Result<Signature, String> {
    std::panic::set_hook(Box::new(|panic| log::error(&panic.to_string())));
    let (made, signature) = G::init(&Assets::new()).map_err(|error| error.to_string())?;
    guest.set(made).map_err(|_made| "init was called twice".to_owned())?;
    let signature = signature.into_wit();
    #[cfg(all(feature = "allocator", target_arch = "wasm32"))]
    crate::memory::begin_serving();
    Ok(signature)
}

/// Run the guest's `predict`.
///
/// # Errors
/// The guest's error, or an error if `predict` is called before `init`.
pub fn predict<G: Guest>(
    guest: &OnceLock<G>,
    inputs: Vec<Tensor>,
) -> Result<Vec<Tensor>, PredictError> {
    let Some(guest) = guest.get() else {
        return Err(PredictError::Failed("predict was called before init".to_owned()));
    };
    let outputs = guest.predict(&Batch::new(inputs)).map_err(crate::PredictError::into_wit)?;
    Ok(outputs.into_iter().map(crate::Tensor::into_wit).collect())
}
