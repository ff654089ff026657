//! The cache of the code on which `init` runs: versions of one guest share the component, which is
//! compiled for `init` only once.
//!
//! A cache entry is the native code of the component as wizer has instrumented it, for the engine
//! that is only used in the child. It is written before `init` runs, directly from Cranelift's
//! output. `store` keeps it under a MAC that binds it to the component's digest, so that it is only
//! given to children that compile the same component.

use std::io::Write as _;
use std::path::Path;

use wasmtime::component::Component;

use crate::guest::Engine;

/// The files with the code for `init`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InitCode<'a> {
    /// The code that an earlier child compiled; the file need not exist.
    pub(super) cached: Option<&'a Path>,
    /// Where to write the code if it was not cached; `None` if it is not to be cached.
    pub(super) output: Option<&'a Path>,
}

impl InitCode<'_> {
    /// Load the instrumented component from the cache, or compile it. Failures to read or write the
    /// cache only cost time.
    pub(super) fn load(
        self,
        engine: &Engine,
        instrumented: &[u8],
    ) -> Result<Component, wasmtime::Error> {
        if let Some(cached) = self.cached.filter(|cached| cached.exists()) {
            match map(engine, cached) {
                Ok(component) => return Ok(component),
                Err(error) => tracing::warn!(%error, "cannot use the code for init"),
            }
        }
        let component = Component::new(engine.wasmtime(), instrumented)?;
        if let Some(output) = self.output
            && let Err(error) = write(&component, output)
        {
            tracing::warn!(%error, "cannot keep the code for init");
            // Remove an incomplete file; one that cannot be removed does not load.
            let _ = std::fs::remove_file(output);
        }
        Ok(component)
    }
}

fn map(engine: &Engine, cached: &Path) -> Result<Component, wasmtime::Error> {
    // SAFETY: the parent has checked the file against its MAC, which binds it to the component that
    // this child was given, and has linked it into a folder that is this host's alone.
    #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
    unsafe {
        Component::deserialize_file(engine.wasmtime(), cached)
    }
}

fn write(component: &Component, output: &Path) -> Result<(), wasmtime::Error> {
    let code = component.serialize()?;
    let mut file = std::fs::File::create_new(output)?;
    file.write_all(&code)?;
    file.sync_all()?;
    Ok(())
}
