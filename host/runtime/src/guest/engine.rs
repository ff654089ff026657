//! The engines: those that serve, and two that only live in the `preinit` child. Every setting stands
//! beside its reason.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::ticker::Ticker;
use wasmtime::{
    CacheStore, Config, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    RegallocAlgorithm, WasmBacktraceDetails,
};

/// Changes with everything that changes what compiled code means but that wasmtime cannot see,
/// such as how wizer instruments the component whose code for `init` is kept.
const COMPILED_FORM_REVISION: u32 = 3;

/// What the operator bounds; the rest of the pool follows from it.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// The most instances, of all versions together. Each reserves address space, not memory.
    pub max_instances: u32,
    /// The most linear memory of one instance, in bytes.
    pub max_memory_bytes: usize,
}

/// What the host itself needs of the stack of a thread that runs guests, in bytes: several times
/// what it was seen to use.
const HOST_STACK_BYTES: usize = 2 << 20;

/// The engines that versions run on: one for each size of call stack, because wasmtime bounds the
/// stack for an engine and not for an instance. They run each other's code.
pub struct Engines(BTreeMap<usize, Engine>);

impl Engines {
    /// An engine for each of these sizes of call stack, in bytes; at least one.
    ///
    /// # Errors
    /// The machine refuses what an engine needs.
    pub fn serving(
        limits: EngineLimits,
        stacks: impl IntoIterator<Item = usize>,
    ) -> Result<Self, EngineError> {
        let mut engines = BTreeMap::new();
        for stack in stacks {
            if let Entry::Vacant(engine) = engines.entry(stack) {
                engine.insert(Engine::serving(limits, stack)?);
            }
        }
        Ok(Self(engines))
    }

    /// The engine with this call stack.
    ///
    /// # Panics
    /// There is none: no model was to have such a stack.
    pub fn with_stack(&self, bytes: usize) -> &Engine {
        &self.0[&bytes]
    }

    /// What a thread needs for its stack to run guests of all these engines, in bytes.
    pub fn thread_stack_bytes(&self) -> usize {
        thread_stack_bytes(self.0.keys().max().copied().unwrap_or_default())
    }

    /// A text that is the same for engines that can run each other's compiled code.
    pub fn fingerprint(&self) -> String {
        self.0.values().next().map(Engine::fingerprint).unwrap_or_default()
    }
}

/// What a thread needs for its stack to run guests with this call stack, in bytes.
pub(super) fn thread_stack_bytes(guest_stack_bytes: usize) -> usize {
    guest_stack_bytes + HOST_STACK_BYTES
}

/// The engine that compiled versions run on.
#[derive(Clone)]
pub struct Engine {
    engine: wasmtime::Engine,
    /// Only where guests are served: elsewhere nothing interrupts them but the process's limits.
    ticker: Option<Ticker>,
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
    /// The engine that serves, and the thread that lets guests notice their deadlines.
    ///
    /// # Errors
    /// The machine refuses what the engine needs.
    pub fn serving(limits: EngineLimits, stack_bytes: usize) -> Result<Self, EngineError> {
        let mut config = serving_config(limits);
        config.max_wasm_stack(stack_bytes);
        // Not used, but held against the above.
        config.async_stack_size(stack_bytes + HOST_STACK_BYTES);
        let engine = match wasmtime::Engine::new(&config) {
            Ok(engine) => engine,
            Err(error) => {
                // Some containers bound the address space that the pool would reserve.
                let reason = format!("{error:#}");
                tracing::warn!(reason, "no pool of instances, each one will be mapped by itself");
                config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
                wasmtime::Engine::new(&config).map_err(EngineError)?
            }
        };
        let ticker = Ticker::start(engine.weak()).map_err(|error| EngineError(error.into()))?;
        Ok(Self { engine, ticker: Some(ticker) })
    }

    /// The engine of the `preinit` child: it compiles for the serving engine, and never runs.
    pub(crate) fn compiling(functions: Arc<dyn CacheStore>) -> Result<Self, EngineError> {
        let limits = EngineLimits { max_instances: 1, max_memory_bytes: 1 << 32 };
        let mut config = serving_config(limits);
        // Nothing is instantiated here, so nothing needs reserving.
        config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        config.enable_incremental_compilation(functions).map_err(EngineError)?;
        Ok(Self { engine: wasmtime::Engine::new(&config).map_err(EngineError)?, ticker: None })
    }

    /// The engine of the `preinit` child that runs `init` once, on code that is thrown away.
    /// Its functions are not kept one by one: `preinit` keeps the code as a whole.
    pub(crate) fn snapshotting(stack_bytes: usize) -> Result<Self, EngineError> {
        let mut config = snapshotting_config();
        config.max_wasm_stack(stack_bytes);
        config.async_stack_size(stack_bytes + HOST_STACK_BYTES);
        Ok(Self { engine: wasmtime::Engine::new(&config).map_err(EngineError)?, ticker: None })
    }

    /// A text that is the same for engines that can run each other's compiled code.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Blake3Hasher(blake3::Hasher::new());
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        COMPILED_FORM_REVISION.hash(&mut hasher);
        hasher.0.finalize().to_hex()[..16].to_owned()
    }

    /// What makes running guests notice their deadlines.
    pub(super) fn ticker(&self) -> Ticker {
        self.ticker.clone().expect("only the serving engine runs versions")
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }
}

/// Everything that decides what a guest computes, for every engine: what `init` leaves in a snapshot
/// is continued by `predict`, so both must mean the same by each instruction. Each engine adds only
/// how fast its code is, how it is bounded and where its memory comes from.
fn semantics() -> Config {
    let mut config = Config::new();
    config.wasm_component_model(true);
    // The same results on every machine, at no cost where there is FMA.
    config.wasm_relaxed_simd(true);
    config.relaxed_simd_deterministic(true);
    // The bits of a NaN are the machine's: making them the same would slow down every operation on
    // floats, and they are none of what a signature promises.
    config.cranelift_nan_canonicalization(false);
    // Guests are single-threaded: shared memory is attack surface without use.
    config.wasm_threads(false);
    config.shared_memory(false);
    config
}

/// For `init` in the `preinit` child.
fn snapshotting_config() -> Config {
    let mut config = semantics();
    // Compiled twice, run once: the cheapest code is the fastest way through.
    config.cranelift_opt_level(OptLevel::None);
    config.cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    // What is reported of a trap is its reason; where it was would be a tenth of the code.
    config.generate_address_map(false);
    // For debuggers and profilers; wasmtime unwinds by frame pointers.
    config.native_unwind_info(false);
    config
}

fn serving_config(limits: EngineLimits) -> Config {
    let mut config = semantics();
    // Deadlines: a guest checks at every loop's back edge and function entry.
    config.epoch_interruption(true);
    // Weights of all instances of a version are one file mapping; without the large limit wasmtime
    // copies images over 16 MiB into every instance.
    config.memory_init_cow(true);
    config.memory_guaranteed_dense_image_size(4 << 30);
    // Function names in logged backtraces are enough; line tables would be parsed at every trap.
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(limits)));
    config
}

fn pool(limits: EngineLimits) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    // A component of wit-bindgen is a main module with its shims: up to four core instances.
    pool.total_component_instances(limits.max_instances);
    pool.total_core_instances(limits.max_instances.saturating_mul(4));
    pool.total_memories(limits.max_instances);
    pool.total_tables(limits.max_instances.saturating_mul(2));
    pool.max_memories_per_component(1);
    pool.max_tables_per_component(4);
    pool.max_memory_size(limits.max_memory_bytes);
    // tract's vtables and symbols exceed the defaults.
    pool.max_core_instance_size(16 << 20);
    pool.max_component_instance_size(16 << 20);
    pool.table_elements(100_000);
    // Nothing of a memory is reset by copying: a memory begins with the guest's stack, of which a call
    // dirties a page or two, so copying its first MiB cost more than it saved (`cargo xtask bench
    // runtime`: 4 of 1261 page faults). Tables are dense and small.
    pool.linear_memory_keep_resident(0);
    pool.table_keep_resident(64 << 10);
    pool.max_unused_warm_slots(limits.max_instances);
    pool
}

/// wasmtime describes its configuration through `Hash`; the standard hasher makes no promise to
/// stay the same, so this one is used.
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

    /// What the settings of an engine say about results, as far as wasmtime shows them.
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
        let limits = EngineLimits { max_instances: 1, max_memory_bytes: 1 << 20 };
        let serving = Engine::serving(limits, 512 << 10).unwrap();
        let compiling = Engine::compiling(Arc::new(NoFunctions)).unwrap();
        let snapshotting = Engine::snapshotting(512 << 10).unwrap();
        assert_eq!(semantics_of(&snapshotting), semantics_of(&serving));
        assert_eq!(semantics_of(&compiling), semantics_of(&serving));
        assert!(serving.wasmtime().get_relaxed_simd_deterministic());
        assert_eq!(compiling.fingerprint(), serving.fingerprint());
    }
}
