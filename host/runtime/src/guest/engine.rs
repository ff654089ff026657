//! The wasmtime engines: those that serve, and those of pre-initialisation. Every
//! setting is explained where it is made.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::arithmetic::IdleCores;
use super::ticker::Ticker;
use crate::machine;
use wasmtime::{
    CacheStore, Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    RegallocAlgorithm, WasmBacktraceDetails,
};

/// Increment this when the meaning of compiled code changes in a way that wasmtime's compatibility
/// hash does not cover.
const COMPILED_FORM_REVISION: u32 = 3;

/// The limits that the operator sets; the other sizes of the instance pool follow from them.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// The most instances of all versions together. Each reserves address space, not memory.
    pub max_instances: u32,
    /// The most linear memory of one instance, in bytes.
    pub max_memory_bytes: usize,
    /// Whether large operations of a guest use cores on which no guest runs.
    pub use_idle_cores: bool,
}

/// The stack that the host itself needs on a thread that runs guests, in bytes: several times the
/// observed use.
const HOST_STACK_BYTES: usize = 2 << 20;

/// The engines that run versions: one for each size of the call stack, because wasmtime limits the
/// stack per engine and not per instance. Their compiled code is interchangeable.
pub struct Engines(BTreeMap<usize, Engine>);

impl Engines {
    /// Create an engine for each of these sizes of the call stack, in bytes; there must be at least
    /// one.
    ///
    /// # Errors
    /// The system does not provide the resources that an engine needs.
    pub fn serving(
        limits: EngineLimits,
        stacks: impl IntoIterator<Item = usize>,
    ) -> Result<Self, EngineError> {
        Self::create(limits, stacks, true)
    }

    /// Create engines as [`Engines::serving`] does, whose guests cannot be interrupted: a call ends
    /// when the guest returns. To measure what interruption costs.
    ///
    /// # Errors
    /// The system does not provide the resources that an engine needs.
    pub fn uninterruptible(
        limits: EngineLimits,
        stacks: impl IntoIterator<Item = usize>,
    ) -> Result<Self, EngineError> {
        Self::create(limits, stacks, false)
    }

    fn create(
        limits: EngineLimits,
        stacks: impl IntoIterator<Item = usize>,
        interruptible: bool,
    ) -> Result<Self, EngineError> {
        let cores = idle_cores(limits)?;
        let mut engines = BTreeMap::new();
        for stack in stacks {
            if let Entry::Vacant(engine) = engines.entry(stack) {
                engine.insert(Engine::running(limits, stack, interruptible, &cores)?);
            }
        }
        Ok(Self(engines))
    }

    /// The engine with this size of the call stack.
    ///
    /// # Panics
    /// There is no such engine: the size was not passed to [`Engines::serving`].
    pub fn with_stack(&self, bytes: usize) -> &Engine {
        &self.0[&bytes]
    }

    /// The stack size of a thread that runs guests of all these engines, in bytes.
    pub fn thread_stack_bytes(&self) -> usize {
        thread_stack_bytes(self.0.keys().max().copied().unwrap_or_default())
    }

    /// A text that is equal for engines whose compiled code is interchangeable.
    pub fn fingerprint(&self) -> String {
        self.0.values().next().map(Engine::fingerprint).unwrap_or_default()
    }
}

/// The stack size of a thread that runs guests with this size of the call stack, in bytes.
pub(super) fn thread_stack_bytes(guest_stack_bytes: usize) -> usize {
    guest_stack_bytes + HOST_STACK_BYTES
}

/// A configured wasmtime engine.
#[derive(Clone)]
pub struct Engine {
    engine: wasmtime::Engine,
    /// Only for serving: elsewhere, guests are only limited by the limits of their process.
    ticker: Option<Ticker>,
    /// Likewise.
    cores: Option<Arc<IdleCores>>,
}

/// The engine cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
#[error("set up WebAssembly: {0:#}")]
pub struct EngineError(wasmtime::Error);

impl From<wasmtime::Error> for EngineError {
    fn from(error: wasmtime::Error) -> Self {
        Self(error)
    }
}

impl Engine {
    /// Create an engine that runs compiled versions, and the thread that advances its epoch.
    ///
    /// # Errors
    /// The system does not provide the resources that an engine needs.
    pub fn serving(limits: EngineLimits, stack_bytes: usize) -> Result<Self, EngineError> {
        Self::running(limits, stack_bytes, true, &idle_cores(limits)?)
    }

    fn running(
        limits: EngineLimits,
        stack_bytes: usize,
        interruptible: bool,
        cores: &Arc<IdleCores>,
    ) -> Result<Self, EngineError> {
        let mut config = serving_config(limits, interruptible);
        config.max_wasm_stack(stack_bytes);
        // Not used, but wasmtime checks it against the limit above.
        config.async_stack_size(stack_bytes + HOST_STACK_BYTES);
        let engine = match wasmtime::Engine::new(&config) {
            Ok(engine) => engine,
            Err(error) => {
                // Some containers limit the address space, which the pool reserves in advance.
                let reason = format!("{error:#}");
                tracing::warn!(
                    reason,
                    "no pool of instances, so each instance is mapped individually"
                );
                config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
                wasmtime::Engine::new(&config).map_err(EngineError)?
            }
        };
        let ticker = Ticker::start(engine.weak()).map_err(|error| EngineError(error.into()))?;
        Ok(Self { engine, ticker: Some(ticker), cores: Some(Arc::clone(cores)) })
    }

    /// Create an engine that compiles for the serving engines and runs `init` on that code.
    pub(crate) fn compiling(
        functions: Arc<dyn CacheStore>,
        interruptible: bool,
        stack_bytes: usize,
    ) -> Result<Self, EngineError> {
        let mut config = single_config(interruptible, stack_bytes);
        config.enable_incremental_compilation(functions).map_err(EngineError)?;
        Self::single(&config)
    }

    /// Create an engine that only runs `init`: it computes the same as the serving engines, on code that
    /// is compiled faster and not kept.
    pub(crate) fn initialising(stack_bytes: usize) -> Result<Self, EngineError> {
        let mut config = single_config(false, stack_bytes);
        config.cranelift_opt_level(OptLevel::None);
        config.cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
        // Only the reason of a trap is reported; address maps would take a tenth of the code's size.
        config.generate_address_map(false);
        // For debuggers and profilers; wasmtime unwinds by frame pointers.
        config.native_unwind_info(false);
        Self::single(&config)
    }

    fn single(config: &Config) -> Result<Self, EngineError> {
        let engine = wasmtime::Engine::new(config).map_err(EngineError)?;
        Ok(Self { engine, ticker: None, cores: None })
    }

    /// A text that is equal for engines whose compiled code is interchangeable.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Blake3Hasher(blake3::Hasher::new());
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        COMPILED_FORM_REVISION.hash(&mut hasher);
        hasher.0.finalize().to_hex()[..16].to_owned()
    }

    /// The thread that advances the epoch.
    pub(super) fn ticker(&self) -> Ticker {
        self.ticker.clone().expect("only the serving engine runs versions")
    }

    /// The cores for large operations.
    pub(super) fn cores(&self) -> Arc<IdleCores> {
        self.cores.clone().expect("only the serving engine runs versions")
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }
}

/// The cores of the process, of which a guest uses only one unless the operator allows more.
fn idle_cores(limits: EngineLimits) -> Result<Arc<IdleCores>, EngineError> {
    let cores = if limits.use_idle_cores { machine::cores() } else { 1 };
    let cores = IdleCores::new(cores).map_err(wasmtime::Error::new)?;
    Ok(Arc::new(cores))
}

/// The configuration of an engine with one instance, outside of the pool.
fn single_config(interruptible: bool, stack_bytes: usize) -> Config {
    let limits =
        EngineLimits { max_instances: 1, max_memory_bytes: 1 << 32, use_idle_cores: false };
    let mut config = serving_config(limits, interruptible);
    // There is one instance, so no address space has to be reserved.
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    config.max_wasm_stack(stack_bytes);
    config.async_stack_size(stack_bytes + HOST_STACK_BYTES);
    config
}

fn serving_config(limits: EngineLimits, interruptible: bool) -> Config {
    let mut config = Config::new();
    config.wasm_component_model(true);
    // The same results on every machine, at no cost on processors with FMA.
    config.wasm_relaxed_simd(true);
    config.relaxed_simd_deterministic(true);
    // The bits of NaNs depend on the processor. Canonicalising them would slow down every
    // floating-point operation, and signatures make no promise about them.
    config.cranelift_nan_canonicalization(false);
    // Guests are single-threaded: shared memory is attack surface without use. Threads are not compiled in.
    config.shared_memory(false);
    // For deadlines: a guest checks the epoch at every loop back edge and function entry.
    config.epoch_interruption(interruptible);
    // All instances of a version share one file mapping of the weights. With a smaller limit,
    // wasmtime copies images over 16 MiB into every instance.
    config.memory_init_cow(true);
    config.memory_guaranteed_dense_image_size(4 << 30);
    // Function names suffice in logged backtraces; line tables would be parsed at every trap.
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
    config
}

/// What the memory of an instance that has ended may keep of the machine's memory: the activations of
/// most networks.
const RESIDENT_MEMORY_BYTES: usize = 16 << 20;

fn pool(limits: EngineLimits) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    // A component of a Rust guest has up to five core instances: its module, its state and shims. One
    // that links an interpreter dynamically has dozens. The pool only counts them.
    pool.total_component_instances(limits.max_instances);
    pool.total_core_instances(limits.max_instances.saturating_mul(100));
    pool.total_memories(limits.max_instances);
    pool.total_tables(limits.max_instances.saturating_mul(2));
    pool.max_memories_per_component(1);
    pool.max_tables_per_component(4);
    pool.max_memory_size(limits.max_memory_bytes);
    // tract's vtables and symbols exceed the default.
    pool.max_core_instance_size(16 << 20);
    pool.max_component_instance_size(16 << 20);
    pool.table_elements(100_000);
    // The pages that a call has written are found by a scan of the page table (Linux 6.7) and copied
    // from the image, so that the next instance does not fault on them: a new instance with its call
    // then takes as long as a call of a reused one. Elsewhere, or if there are more, they are unmapped.
    // Tables are dense and small.
    pool.pagemap_scan(Enabled::Auto);
    pool.linear_memory_keep_resident(RESIDENT_MEMORY_BYTES);
    pool.table_keep_resident(64 << 10);
    pool.max_unused_warm_slots(limits.max_instances);
    pool
}

/// wasmtime exposes its configuration as `Hash`. The standard hasher may change between releases of
/// Rust, so the fingerprint uses BLAKE3.
struct Blake3Hasher(blake3::Hasher);

impl Hasher for Blake3Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let hash = self.0.finalize();
        let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        u64::from_le_bytes(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoFunctions;

    impl CacheStore for NoFunctions {
        fn get(&self, _key: &[u8]) -> Option<std::borrow::Cow<'_, [u8]>> {
            None
        }

        fn insert(&self, _key: &[u8], _value: Vec<u8>) -> bool {
            false
        }
    }

    impl std::fmt::Debug for NoFunctions {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("NoFunctions")
        }
    }

    /// The settings of an engine that affect results, as far as wasmtime exposes them.
    fn semantics_of(engine: &Engine) -> impl PartialEq + std::fmt::Debug {
        let engine = engine.wasmtime();
        (
            engine.get_wasm_features(),
            engine.get_relaxed_simd_deterministic(),
            engine.get_cranelift_nan_canonicalization(),
            engine.get_shared_memory(),
            engine.get_target(),
            engine.get_strategy(),
            engine.get_cranelift_flags_enabled().map(str::to_owned).collect::<Vec<_>>(),
        )
    }

    #[test]
    fn all_engines_have_the_same_semantics() {
        let limits =
            EngineLimits { max_instances: 1, max_memory_bytes: 1 << 20, use_idle_cores: true };
        let serving = Engine::serving(limits, 512 << 10).unwrap();
        let compiling = Engine::compiling(Arc::new(NoFunctions), true, 512 << 10).unwrap();
        let initialising = Engine::initialising(512 << 10).unwrap();
        assert_eq!(semantics_of(&compiling), semantics_of(&serving));
        assert_eq!(semantics_of(&initialising), semantics_of(&serving));
        assert!(serving.wasmtime().get_relaxed_simd_deterministic());
        assert_eq!(compiling.fingerprint(), serving.fingerprint());
        // Code that cannot be interrupted never gets into an engine that serves.
        let endless = Engine::compiling(Arc::new(NoFunctions), false, 512 << 10).unwrap();
        assert_ne!(endless.fingerprint(), serving.fingerprint());
    }
}
