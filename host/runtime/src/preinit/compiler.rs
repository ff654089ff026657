//! Compiles components and the modules that they import, unless a module has been compiled before.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use wasmtime::Module;
use wasmtime::component::Component;

use super::errors::{file_error, host_error, unusable};
use super::function_cache::FunctionCache;
use super::split::SplitComponent;
use super::{CompileFiles, PreinitError};
use crate::guest::Engine;

/// Compiles what runs `init`, and what serves.
pub(super) struct Compiler<'a> {
    engine: Engine,
    /// `None` if only the signature is needed: nothing is kept.
    files: Option<&'a CompileFiles>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(
        files: Option<&'a CompileFiles>,
        cache: &Arc<FunctionCache>,
        interruptible: bool,
        stack_bytes: usize,
    ) -> Result<Self, PreinitError> {
        let engine = match files {
            Some(_) => Engine::compiling(Arc::clone(cache) as _, interruptible, stack_bytes),
            None => Engine::initialising(stack_bytes),
        };
        Ok(Self { engine: engine.map_err(host_error)?, files })
    }

    /// The engine on which `init` runs.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The fingerprint of the engines that can run what is kept.
    pub(super) fn fingerprint(&self) -> Option<String> {
        self.files.map(|_| self.engine.fingerprint())
    }

    /// The modules that a component imports. Those that have not been compiled before are kept.
    pub(super) fn modules(&self, split: &SplitComponent<'_>) -> Result<Vec<Module>, PreinitError> {
        let mut modules = Vec::new();
        for (digest, code) in split.code() {
            let Some(files) = self.files else {
                modules.push(Module::new(self.engine.wasmtime(), code).map_err(unusable)?);
                continue;
            };
            let name = digest.hex();
            if let Some(module) = self.known_module(&files.modules.join(&name)) {
                modules.push(module);
                continue;
            }
            let module = Module::new(self.engine.wasmtime(), code).map_err(unusable)?;
            let output = files.modules_output.join(&name);
            // A component may contain the same module twice.
            if !output.exists() {
                std::fs::create_dir_all(&files.modules_output).map_err(writing)?;
                write(&output, &module.serialize().map_err(unusable)?)?;
            }
            modules.push(module);
        }
        Ok(modules)
    }

    fn known_module(&self, path: &Path) -> Option<Module> {
        if !path.exists() {
            return None;
        }
        // SAFETY: the parent has checked the file against its MAC, which binds it to the digest, and has
        // linked it into a folder that is this host's alone.
        #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
        let module = unsafe { Module::deserialize_file(self.engine.wasmtime(), path) };
        module.inspect_err(|error| tracing::warn!(%error, "cannot use a compiled module")).ok()
    }

    /// Compile a component, to run it.
    pub(super) fn component(&self, component: &[u8]) -> Result<Component, PreinitError> {
        Component::new(self.engine.wasmtime(), component).map_err(unusable)
    }

    /// Compile a component, to keep it.
    pub(super) fn keep(&self, component: &[u8]) -> Result<(), PreinitError> {
        let Some(files) = self.files else { return Ok(()) };
        let compiled = self.engine.wasmtime().precompile_component(component).map_err(unusable)?;
        write(&files.compiled, &compiled)
    }

    /// Keep a compiled component.
    pub(super) fn keep_compiled(&self, component: &Component) -> Result<(), PreinitError> {
        let Some(files) = self.files else { return Ok(()) };
        write(&files.compiled, &component.serialize().map_err(unusable)?)
    }
}

fn write(path: &Path, compiled: &[u8]) -> Result<(), PreinitError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(compiled)?;
        file.sync_all()
    };
    write().map_err(writing)
}

fn writing(error: std::io::Error) -> PreinitError {
    file_error("writing the compiled form", &error)
}
