//! Who executes operations: the host, if it grants that, or the guest's own kernels, which compute
//! the same bits.

#[cfg(target_arch = "wasm32")]
pub(crate) mod host;
#[cfg(target_arch = "wasm32")]
mod result;

use std::sync::OnceLock;

use guesthouse_arithmetic::Backend;

/// Who executes operations.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Executor {
    /// The host, through the interface `arithmetic`.
    #[cfg(target_arch = "wasm32")]
    Host,
    /// This backend of the kernels in the guest.
    Local(Backend),
}

/// Who executes operations. It is decided by the first call, which a guest makes in `init`, so that
/// the decision is part of the snapshot.
pub(crate) fn executor() -> Executor {
    static EXECUTOR: OnceLock<Executor> = OnceLock::new();
    *EXECUTOR.get_or_init(decide)
}

#[cfg(target_arch = "wasm32")]
fn decide() -> Executor {
    if host::is_granted() { Executor::Host } else { Executor::Local(Backend::fastest()) }
}

#[cfg(not(target_arch = "wasm32"))]
fn decide() -> Executor {
    Executor::Local(Backend::fastest())
}
