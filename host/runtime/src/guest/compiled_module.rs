//! Compiled code that the versions of one guest share.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::AtFlags;
use wasmtime::Module;

use super::engine::Engine;

/// The compiled code of a version.
#[derive(Debug, Clone, Copy)]
pub struct CompiledCode<'a> {
    /// The file with the component.
    pub component: &'a Path,
    /// The modules that it imports, in the order of their imports.
    pub modules: &'a [Arc<CompiledModule>],
}

/// A compiled core module without state, which versions import. It is mapped once for each engine,
/// however many versions use it.
#[derive(Debug)]
pub struct CompiledModule {
    file: File,
    mapped: Mutex<Vec<Module>>,
}

impl CompiledModule {
    /// The module in this file, which is not read before it is needed.
    ///
    /// # Safety
    /// The file is native code and stays mapped. It must have been written by this host and checked
    /// against its MAC, and must never be modified in place.
    #[expect(unsafe_code, reason = "wasmtime cannot check native code, only our own MAC can")]
    pub(crate) unsafe fn new(file: File) -> Self {
        Self { file, mapped: Mutex::default() }
    }

    /// The file that was checked, whatever file has its name now.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Give the file another name, in the same file system.
    pub(crate) fn link(&self, to: &Path) -> io::Result<()> {
        let flags = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(rustix::fs::CWD, self.path(), rustix::fs::CWD, to, flags)?)
    }

    /// The module for this engine.
    pub(super) fn on(&self, engine: &Engine) -> wasmtime::Result<Module> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let of_engine =
            |module: &&Module| wasmtime::Engine::same(module.engine(), engine.wasmtime());
        if let Some(module) = mapped.iter().find(of_engine) {
            return Ok(module.clone());
        }
        let path = self.path();
        // SAFETY: whoever made this value vouches for the file.
        #[expect(unsafe_code, reason = "mapping native code that only the MAC vouches for")]
        let module = unsafe { Module::deserialize_file(engine.wasmtime(), path) }?;
        mapped.push(module.clone());
        Ok(module)
    }
}
