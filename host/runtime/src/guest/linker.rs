//! The imports of a guest: the contract's own interfaces, deterministic random numbers, and the few
//! parts of WASI that ordinary code needs to run.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasData, HasSelf, Linker, Resource, ResourceType};
use wasmtime::{Module, bail};
use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
use wasmtime_wasi::p2::bindings::{cli, random, sync};
use wasmtime_wasi::p2::{DynPollable, add_to_linker_sync};
use wasmtime_wasi::random::{WasiRandom, WasiRandomCtx};
use wasmtime_wasi::{ResourceTable, WasiView as _};

use super::arithmetic;
use super::bindings::Model;
use super::engine::Engine;
use super::state::HostState;

/// The phase in which guest code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `init`, before the snapshot. Handles of streams or files would dangle in the snapshot, so
    /// all of WASI fails with [`NotInSnapshot`], except random numbers and the environment, which
    /// is empty.
    Snapshot,
    /// `predict`, and `init` if it runs in each instance. Output is discarded and clocks stand
    /// still. There are no files, sockets, environment variables or arguments, and waiting traps.
    Serve,
}

/// The guest called this function, whose result a snapshot could not preserve.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{0}` cannot be called before a snapshot")]
pub(crate) struct NotInSnapshot(pub(crate) String);

/// The name under which a component imports the module with this number whose code versions share.
pub(crate) fn code_import(number: usize) -> String {
    format!("guesthouse-code{number}")
}

/// Link the modules whose code versions share.
pub(crate) fn link_modules(
    linker: &mut Linker<HostState>,
    modules: &[Module],
) -> wasmtime::Result<()> {
    for (number, module) in modules.iter().enumerate() {
        linker.root().module(&code_import(number), module)?;
    }
    Ok(())
}

/// Create the linker for a component.
pub(crate) fn linker(
    engine: &Engine,
    component: &Component,
    phase: Phase,
) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::<HostState>::new(engine.wasmtime());
    Model::add_to_linker::<_, HasSelf<HostState>>(&mut linker, |state| state)?;
    arithmetic::add_to_linker(&mut linker, HostState::arithmetic)?;
    match phase {
        Phase::Serve => {
            add_to_linker_sync(&mut linker)?;
            linker.allow_shadowing(true);
            sync::io::poll::add_to_linker::<_, NoWaiting>(&mut linker, |state| {
                NoWaiting(state.ctx().table)
            })?;
        }
        Phase::Snapshot => {
            add_random(&mut linker)?;
            // Empty, and without handles. tract reads its settings from the environment.
            cli::environment::add_to_linker::<_, WasiCli>(&mut linker, HostState::cli)?;
            trap_other_imports(&mut linker, engine, component)?;
        }
    }
    Ok(linker)
}

fn add_random(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    fn context(state: &mut HostState) -> &mut WasiRandomCtx {
        state.ctx().ctx.random()
    }
    random::random::add_to_linker::<_, WasiRandom>(linker, context)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, context)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, context)
}

/// Make all other imports trap. wasmtime's `define_unknown_imports_as_traps` would shadow functions
/// that are linked under a compatible version of an interface's name.
fn trap_other_imports(
    linker: &mut Linker<HostState>,
    engine: &Engine,
    component: &Component,
) -> wasmtime::Result<()> {
    let linked = ["guesthouse:model/", "wasi:random/", "wasi:cli/environment@"];
    for (interface, item) in component.component_type().imports(engine.wasmtime()) {
        let ComponentItem::ComponentInstance(instance) = item.ty else {
            continue;
        };
        if linked.iter().any(|prefix| interface.starts_with(prefix)) {
            continue;
        }
        let mut stubs = linker.instance(interface)?;
        for (name, item) in instance.exports(engine.wasmtime()) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => {
                    let called = NotInSnapshot(format!("{interface}#{name}"));
                    stubs.func_new(name, move |_, _, _, _| {
                        Err(wasmtime::Error::new(called.clone()))
                    })?;
                }
                ComponentItem::Resource(_) => {
                    stubs.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Makes waiting trap. It would happen in the host, where no epoch interrupts it, and a waiting
/// guest would block an inference thread past every deadline.
struct NoWaiting<'a>(&'a mut ResourceTable);

impl HasData for NoWaiting<'static> {
    type Data<'a> = NoWaiting<'a>;
}

impl sync::io::poll::Host for NoWaiting<'_> {
    fn poll(&mut self, _pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        bail!("a guest must not wait")
    }
}

impl sync::io::poll::HostPollable for NoWaiting<'_> {
    fn ready(&mut self, _pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        bail!("a guest must not wait")
    }

    fn block(&mut self, _pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        bail!("a guest must not wait")
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.0.delete(pollable)?;
        Ok(())
    }
}
