//! A compiled version and its instances.

use std::path::Path;
use std::sync::Arc;

use wasmtime::component::Component;
use wasmtime::{Store, UpdateDeadline};

use super::bindings::{Model, ModelPre};
use super::convert::{fault_from_wit, outputs_from_wit, tensor_into_wit};
use super::engine::{Engine, EngineError};
use super::fault::Fault;
use super::limits::InstanceLimits;
use super::linker::{Phase, linker};
use super::state::HostState;
use super::stop::Stop;
use super::ticker::Ticker;
use crate::model::{Signature, Tensor, VersionId};

/// A version's code, ready to be instantiated in microseconds.
#[derive(Clone)]
pub struct LoadedComponent {
    pre: ModelPre<HostState>,
    version: Arc<VersionId>,
    signature: Arc<Signature>,
    limits: InstanceLimits,
    ticker: Ticker,
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
        limits: InstanceLimits,
    ) -> Result<Self, EngineError> {
        // SAFETY: the caller vouches for the file.
        let component = unsafe { Component::deserialize_file(engine.wasmtime(), compiled) }?;
        let linker = linker(engine, &component, Phase::Serve)?;
        let pre = ModelPre::new(linker.instantiate_pre(&component)?)?;
        let (version, signature) = (Arc::new(version), Arc::new(signature));
        Ok(Self { pre, version, signature, limits, ticker: engine.ticker() })
    }

    /// A new instance, in the state that `init` left.
    ///
    /// # Errors
    /// [`Fault::Host`], when the pool of instances is exhausted.
    pub fn instantiate(&self) -> Result<Instance, Fault> {
        let state = HostState::new(Arc::clone(&self.version), &self.limits, None);
        let mut store = Store::new(self.pre.engine(), state);
        store.limiter(HostState::limiter);
        store.set_hostcall_fuel(self.limits.transfer_bytes);
        // Instantiation runs no guest code to speak of; every call begins with one tick.
        store.set_epoch_deadline(u64::MAX / 2);
        store.epoch_deadline_callback(|context| match context.data().stop_reason() {
            Some(_) => Ok(UpdateDeadline::Interrupt),
            None => Ok(UpdateDeadline::Continue(1)),
        });
        let guest = self.pre.instantiate(&mut store);
        let guest = guest.map_err(|error| Fault::Host(format!("{error:#}")))?;
        let (signature, ticker) = (Arc::clone(&self.signature), self.ticker.clone());
        Ok(Instance { store, guest, signature, ticker })
    }
}

/// One instance: a store of its own, so that a trap takes nothing else down.
pub struct Instance {
    store: Store<HostState>,
    guest: Model,
    signature: Arc<Signature>,
    ticker: Ticker,
}

impl Instance {
    /// Outputs for a batch that has been validated against the signature.
    ///
    /// # Errors
    /// [`Fault`]; unless [`Fault::spares_instance`], this instance must be dropped.
    pub fn predict(&mut self, inputs: &[Tensor], stop: &Stop) -> Result<Vec<Tensor>, Fault> {
        let rows = inputs.first().map_or(0, Tensor::rows);
        let inputs: Vec<_> = inputs.iter().map(tensor_into_wit).collect();
        self.store.data_mut().begin_call(stop);
        let _running = self.ticker.running();
        self.store.set_epoch_deadline(1);
        let guest = self.guest.guesthouse_model_predict();
        let answer = guest.call_predict(&mut self.store, &inputs);
        self.store.data().end_call();
        match answer {
            Ok(Ok(outputs)) => outputs_from_wit(outputs, &self.signature, rows),
            Ok(Err(error)) => Err(fault_from_wit(error, &self.signature, rows)),
            Err(error) => {
                let state = self.store.data();
                Err(Fault::of_call(&error, state.memory_was_denied(), state.stop_reason()))
            }
        }
    }

    /// Its linear memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }
}
