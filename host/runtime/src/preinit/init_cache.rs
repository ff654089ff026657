//! The code on which `init` runs, kept from one child to the next: versions of one guest differ in
//! what is around the component, and the component is compiled for `init` once.
//!
//! What is kept is whole native code, for the engine that only lives in the child, of the component
//! that wizer has instrumented. It is written before `init` runs, from what Cranelift has just made
//! of the component and nothing else. `store` keeps it under a MAC that binds it to the component's
//! digest, so that it is only ever given to children that compile that very component.

use std::io::Write as _;
use std::path::Path;

use wasmtime::component::Component;

use crate::guest::Engine;

/// Where a child finds the code for `init`, and where it leaves it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InitCode<'a> {
    /// What an earlier child compiled; there need be no such file.
    pub(super) kept: Option<&'a Path>,
    /// Where it goes if there was none; without it, it is not kept.
    pub(super) output: Option<&'a Path>,
}

impl InitCode<'_> {
    /// The instrumented component, compiled or found. What cannot be read or written costs time and
    /// nothing else.
    pub(super) fn load(
        self,
        engine: &Engine,
        instrumented: &[u8],
    ) -> Result<Component, wasmtime::Error> {
        if let Some(kept) = self.kept.filter(|kept| kept.exists()) {
            match map(engine, kept) {
                Ok(component) => return Ok(component),
                Err(error) => tracing::warn!(%error, "cannot use the code for init"),
            }
        }
        let component = Component::new(engine.wasmtime(), instrumented)?;
        if let Some(output) = self.output
            && let Err(error) = write(&component, output)
        {
            tracing::warn!(%error, "cannot keep the code for init");
            // Half of it is none; and what cannot be removed does not load either.
            let _ = std::fs::remove_file(output);
        }
        Ok(component)
    }
}

fn map(engine: &Engine, kept: &Path) -> Result<Component, wasmtime::Error> {
    // SAFETY: the parent has checked the file against its MAC, which binds it to the component that
    // this child was given, and has linked it into a folder that is this host's alone.
    #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
    unsafe {
        Component::deserialize_file(engine.wasmtime(), kept)
    }
}

fn write(component: &Component, output: &Path) -> Result<(), wasmtime::Error> {
    let code = component.serialize()?;
    let mut file = std::fs::File::create_new(output)?;
    file.write_all(&code)?;
    file.sync_all()?;
    Ok(())
}
