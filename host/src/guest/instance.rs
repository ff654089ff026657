//! A compiled version and its instances.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::Store;
use wasmtime::component::Component;

use super::bindings::{Model, ModelPre};
use super::convert::{fault_from_wit, outputs_from_wit, tensor_into_wit};
use super::engine::{Engine, EngineError};
use super::fault::Fault;
use super::linker::{Phase, linker};
use super::state::HostState;
use crate::model::{Signature, Tensor, VersionId};

/// The most bytes that one host call or one result may carry, a limit on what a guest can make the
/// host allocate at once. The batch outputs of the largest models stay well below.
const MAX_TRANSFER_BYTES: usize = 64 << 20;

/// A version's code, ready to be instantiated in microseconds.
#[derive(Clone)]
pub struct LoadedComponent {
    pre: ModelPre<HostState>,
    version: Arc<VersionId>,
    signature: Arc<Signature>,
    max_memory_bytes: usize,
}

impl LoadedComponent {
    /// Map the compiled form of a version.
    ///
    /// # Errors
    /// The file is not what this engine's compiler wrote.
    ///
    /// # Safety
    /// The file is native code and stays mapped: it must be one that this host has written, must
    /// have been checked against its MAC, and must never be changed in place.
    #[expect(unsafe_code, reason = "wasmtime cannot check native code, only our own MAC can")]
    pub unsafe fn map(
        engine: &Engine,
        compiled: &Path,
        version: VersionId,
        signature: Signature,
        max_memory_bytes: usize,
    ) -> Result<Self, EngineError> {
        // SAFETY: the caller vouches for the file.
        let component = unsafe { Component::deserialize_file(engine.wasmtime(), compiled) }?;
        let linker = linker(engine, &component, Phase::Serve)?;
        let pre = ModelPre::new(linker.instantiate_pre(&component)?)?;
        let (version, signature) = (Arc::new(version), Arc::new(signature));
        Ok(Self { pre, version, signature, max_memory_bytes })
    }

    /// A new instance, in the state that `init` left.
    ///
    /// # Errors
    /// [`Fault::Host`], when the pool of instances is exhausted.
    pub fn instantiate(&self) -> Result<Instance, Fault> {
        let state = HostState::new(Arc::clone(&self.version), self.max_memory_bytes, None);
        let mut store = Store::new(self.pre.engine(), state);
        store.limiter(HostState::limiter);
        store.set_hostcall_fuel(MAX_TRANSFER_BYTES);
        // Instantiation runs no guest code to speak of; calls set their own deadline.
        store.set_epoch_deadline(u64::MAX / 2);
        let guest = self.pre.instantiate(&mut store);
        let guest = guest.map_err(|error| Fault::Host(format!("{error:#}")))?;
        Ok(Instance { store, guest, signature: Arc::clone(&self.signature) })
    }
}

/// One instance: a store of its own, so that a trap takes nothing else down.
pub struct Instance {
    store: Store<HostState>,
    guest: Model,
    signature: Arc<Signature>,
}

impl Instance {
    /// Outputs for a batch that has been validated against the signature.
    ///
    /// # Errors
    /// [`Fault`]; unless [`Fault::spares_instance`], this instance must be dropped.
    pub fn predict(&mut self, inputs: &[Tensor], deadline: Instant) -> Result<Vec<Tensor>, Fault> {
        let rows = inputs.first().map_or(0, Tensor::rows);
        let inputs: Vec<_> = inputs.iter().map(tensor_into_wit).collect();
        self.store.set_epoch_deadline(Engine::ticks_until(deadline));
        self.store.data_mut().begin_call();
        let guest = self.guest.guesthouse_model_predict();
        let answer = guest.call_predict(&mut self.store, &inputs);
        self.store.data().end_call();
        match answer {
            Ok(Ok(outputs)) => outputs_from_wit(outputs, &self.signature, rows),
            Ok(Err(error)) => Err(fault_from_wit(error, rows)),
            Err(error) => Err(Fault::of_call(&error, self.store.data().memory_was_denied())),
        }
    }
}
