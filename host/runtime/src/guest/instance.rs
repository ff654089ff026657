//! A compiled version and its instances.

use std::sync::Arc;
use std::time::Instant;

use wasmtime::component::Component;
use wasmtime::{Store, UpdateDeadline, WasmBacktrace};

use super::arithmetic::{ArithmeticUsage, IdleCores, Share};
use super::bindings::{Model, ModelPre};
use super::compiled_module::{CompiledCode, CompiledModule};
use super::convert::{
    fault_from_wit, finite_outputs, outputs_from_wit, shorten_failure, signature_from_wit,
    tensor_into_wit,
};
use super::engine::{Engine, EngineError, thread_stack_bytes};
use super::fault::Fault;
use super::limits::InstanceLimits;
use super::linker::{Phase, link_modules, linker};
use super::samples::FunctionSamples;
use super::state::HostState;
use super::stop::StopSignal;
use super::ticker::Ticker;
use guesthouse_artifact::Artifact;
use guesthouse_model::{Signature, Tensor, VersionId};

/// The code of a version, ready to be instantiated in microseconds.
#[derive(Clone)]
pub struct LoadedComponent {
    pre: ModelPre<HostState>,
    /// Held, so that versions that are loaded later share them.
    _modules: Arc<[Arc<CompiledModule>]>,
    version: Arc<VersionId>,
    signature: Arc<Signature>,
    limits: InstanceLimits,
    /// Set only if there is no snapshot.
    assets: Option<Arc<Artifact>>,
    arithmetic_usage: Arc<ArithmeticUsage>,
    cores: Arc<IdleCores>,
    share: Arc<Share>,
    ticker: Ticker,
}

impl LoadedComponent {
    /// Map the compiled code of a version, and link the modules that it shares with others.
    ///
    /// # Errors
    /// A file was not compiled for this engine, or the modules are not the ones that it imports.
    ///
    /// # Safety
    /// The files are native code and stay mapped. They must have been written by this host and checked
    /// against their MACs, and must never be modified in place.
    #[expect(unsafe_code, reason = "wasmtime cannot check native code, only our own MAC can")]
    pub unsafe fn map(
        engine: &Engine,
        code: CompiledCode<'_>,
        version: VersionId,
        signature: Signature,
        limits: InstanceLimits,
    ) -> Result<Self, EngineError> {
        // SAFETY: the caller vouches for the files.
        let component = unsafe { Component::deserialize_file(engine.wasmtime(), code.component) }?;
        let mut linker = linker(engine, &component, Phase::Serve)?;
        let mapped = code.modules.iter().map(|module| module.on(engine));
        link_modules(&mut linker, &mapped.collect::<Result<Vec<_>, _>>()?)?;
        let pre = ModelPre::new(linker.instantiate_pre(&component)?)?;
        let (version, signature) = (Arc::new(version), Arc::new(signature));
        Ok(Self {
            pre,
            _modules: code.modules.into(),
            version,
            signature,
            limits,
            assets: None,
            arithmetic_usage: Arc::default(),
            cores: engine.cores(),
            share: Arc::new(Share::new(1)),
            ticker: engine.ticker(),
        })
    }

    /// Let the guests of the version, and the cores that help them, occupy so many threads; 1 by
    /// default.
    #[must_use]
    pub fn with_share(self, threads: usize) -> Self {
        Self { share: Arc::new(Share::new(threads)), ..self }
    }

    /// Run `init` with these assets in each instance, because there is no snapshot.
    #[must_use]
    pub fn with_init_per_instance(self, assets: Arc<Artifact>) -> Self {
        Self { assets: Some(assets), ..self }
    }

    /// Whether each instance runs `init` first, because there is no snapshot.
    pub fn runs_init(&self) -> bool {
        self.assets.is_some()
    }

    /// The arithmetic of all instances.
    pub fn arithmetic_usage(&self) -> &Arc<ArithmeticUsage> {
        &self.arithmetic_usage
    }

    /// The stack size of a thread that runs this guest, in bytes.
    pub fn thread_stack_bytes(&self) -> usize {
        thread_stack_bytes(self.limits.stack_bytes)
    }

    /// Create an instance in the state that `init` left. The `start` functions of its modules, and
    /// `init` if it has to run, are interrupted by `stop`.
    ///
    /// # Errors
    /// [`Fault::Host`], if the engine's pool of instances is exhausted; any other fault if guest
    /// code runs.
    pub fn instantiate(&self, stop: &StopSignal) -> Result<Instance, Fault> {
        let state = HostState::new(
            Arc::clone(&self.version),
            &self.limits,
            self.assets.clone(),
            Arc::clone(&self.arithmetic_usage),
        )
        .with_cores(Arc::clone(&self.cores), Arc::clone(&self.share));
        let mut store = Store::new(self.pre.engine(), state);
        store.limiter(HostState::limiter);
        store.set_hostcall_fuel(self.limits.transfer_bytes);
        store.epoch_deadline_callback(|context| Ok(at_tick(context.data())));
        let start_stop = stop.no_later_than(Instant::now() + self.limits.start_time);
        let guest =
            enter_guest(&mut store, &self.ticker, &start_stop, |store| self.pre.instantiate(store));
        let guest = guest.map_err(|error| {
            let state = store.data();
            Fault::from_instantiation(&error, state.memory_was_denied(), state.stop_reason())
        })?;
        let mut instance = Instance {
            store,
            guest,
            signature: Arc::clone(&self.signature),
            accept_non_finite: self.limits.accept_non_finite,
            ticker: self.ticker.clone(),
        };
        if self.runs_init() {
            instance.init(stop)?;
        }
        Ok(instance)
    }
}

/// What happens to a guest that checks its deadline.
fn at_tick(state: &HostState) -> UpdateDeadline {
    match state.stop_reason() {
        Some(_) => UpdateDeadline::Interrupt,
        None => UpdateDeadline::Continue(1),
    }
}

/// Enter guest code with limits on time, memory and logs.
fn enter_guest<T>(
    store: &mut Store<HostState>,
    ticker: &Ticker,
    stop: &StopSignal,
    enter: impl FnOnce(&mut Store<HostState>) -> T,
) -> T {
    store.data_mut().begin_call(stop);
    let _running = (ticker.running(), store.data().occupy_core());
    store.set_epoch_deadline(1);
    let outcome = enter(store);
    store.data().end_call();
    outcome
}

/// One instance. It has its own store, so that a trap affects nothing else.
pub struct Instance {
    store: Store<HostState>,
    guest: Model,
    signature: Arc<Signature>,
    accept_non_finite: bool,
    ticker: Ticker,
}

impl Instance {
    /// Run a batch that has been validated against the signature.
    ///
    /// # Errors
    /// [`Fault`]; the instance must be dropped unless [`Fault::leaves_instance_usable`].
    pub fn predict(&mut self, inputs: &[Tensor], stop: &StopSignal) -> Result<Vec<Tensor>, Fault> {
        let rows = inputs.first().map_or(0, Tensor::rows);
        let given: Vec<_> = inputs.iter().map(tensor_into_wit).collect();
        let answer = self.call(stop, |guest, store| {
            guest.guesthouse_model_predict().call_predict(store, &given)
        })?;
        match answer {
            Ok(outputs) => {
                let outputs = outputs_from_wit(outputs, &self.signature, rows)?;
                if self.accept_non_finite { Ok(outputs) } else { finite_outputs(inputs, outputs) }
            }
            Err(error) => Err(fault_from_wit(error, &self.signature, rows)),
        }
    }

    /// The size of the linear memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// Count from now on which function the guest is in at each tick.
    pub(crate) fn sample_functions(&mut self, samples: Arc<FunctionSamples>) {
        self.store.epoch_deadline_callback(move |context| {
            let backtrace = WasmBacktrace::capture(&context);
            if let Some(frame) = backtrace.frames().first() {
                match frame.func_name() {
                    Some(name) => samples.add(name),
                    None => samples.add(&format!("function {}", frame.func_index())),
                }
            }
            Ok(at_tick(context.data()))
        });
    }

    fn init(&mut self, stop: &StopSignal) -> Result<(), Fault> {
        let declared =
            self.call(stop, |guest, store| guest.guesthouse_model_lifecycle().call_init(store))?;
        self.store.data_mut().forget_assets();
        match declared.map(signature_from_wit) {
            Ok(declared) if declared == *self.signature => Ok(()),
            Ok(_) => Err(Fault::BadOutput("init declares another signature than before".into())),
            Err(reason) => Err(Fault::Failed(format!("init: {}", shorten_failure(&reason)))),
        }
    }

    /// Call a function of the guest.
    fn call<T>(
        &mut self,
        stop: &StopSignal,
        call: impl FnOnce(&Model, &mut Store<HostState>) -> wasmtime::Result<T>,
    ) -> Result<T, Fault> {
        let Self { store, guest, ticker, .. } = self;
        let answer = enter_guest(store, ticker, stop, |store| call(guest, store));
        answer.map_err(|error| {
            let state = self.store.data();
            Fault::from_call(&error, state.memory_was_denied(), state.stop_reason())
        })
    }
}
