//! Splits a component into code and state.
//!
//! Versions of one guest differ only in the memory and the globals that `init` left. So each core module
//! leaves the component, which imports it instead, and its memory and globals become a small module of
//! their own, from which the code imports them:
//!
//! ```text
//! before   component [ module (code, memory, globals, data) ]
//! after    component [ import module (code); module (memory, globals, data) ]    code: in its own file
//! ```
//!
//! The code of all versions of a guest is then the same, byte for byte: it is compiled once, stored once
//! and mapped once. Only the small module changes with the state: before `init` it has the data of the
//! artifact, and in the snapshot what `init` left. The memory still starts as a copy-on-write mapping of
//! an image, because the module that defines it is the one that has the data.
//!
//! Modules of nested components leave as well: the outermost component imports them and passes them on.

mod module;
mod parse;
mod state;
#[cfg(test)]
mod tests;
mod write;

use guesthouse_artifact::Digest;

use self::module::SplitModule;
use self::parse::Node;
use self::state::State;
use self::write::Mode;

/// Why a component cannot be split: what its form is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no snapshot of this form is possible: {0}")]
pub(super) struct Unsplittable(&'static str);

impl<E> From<wasm_encoder::reencode::Error<E>> for Unsplittable {
    fn from(_error: wasm_encoder::reencode::Error<E>) -> Self {
        Self("it uses an unknown feature")
    }
}

impl From<wasmparser::Error> for Unsplittable {
    fn from(_error: wasmparser::Error) -> Self {
        Self("it cannot be parsed")
    }
}

/// A component whose core modules are imports.
pub(super) struct SplitComponent<'a> {
    root: Node<'a>,
    modules: Vec<SplitModule>,
    digests: Vec<Digest>,
}

/// The state of the modules of a component, in their order.
pub(super) struct Snapshot(Vec<Option<State>>);

impl<'a> SplitComponent<'a> {
    /// Split a component.
    ///
    /// # Errors
    /// It has a form that cannot be split.
    pub(super) fn new(component: &'a [u8]) -> Result<Self, Unsplittable> {
        let (root, modules) = parse::parse(component)?;
        let digests = modules.iter().map(|module| Digest::from_content(&module.code)).collect();
        Ok(Self { root, modules, digests })
    }

    /// The code of the modules, and its digest.
    pub(super) fn code(&self) -> impl Iterator<Item = (Digest, &[u8])> {
        let code = self.modules.iter().map(|module| &*module.code);
        self.digests.iter().copied().zip(code)
    }

    /// The digests of the modules, in the order of their imports.
    pub(super) fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// The component before `init`: its modules have the data of the artifact, and start functions run.
    pub(super) fn before_init(&self) -> Result<Vec<u8>, Unsplittable> {
        write::write(&self.root, &self.modules, self.states(), Mode::BEFORE_INIT)
    }

    /// The component after `init`.
    pub(super) fn after_init(&self, snapshot: Snapshot) -> Result<Vec<u8>, Unsplittable> {
        write::write(&self.root, &self.modules, snapshot.0, Mode::AFTER_INIT)
    }

    /// [`SplitComponent::before_init`] with functions that read the state.
    pub(super) fn readable(&self) -> Result<Vec<u8>, Unsplittable> {
        write::write(&self.root, &self.modules, self.states(), Mode::READABLE)
    }

    /// The state of each module before `init`.
    fn states(&self) -> Vec<Option<State>> {
        self.modules.iter().map(|module| module.state.clone()).collect()
    }

    /// Read the state with the functions of [`SplitComponent::readable`], by their names. The result of a
    /// function is passed to what `call` gets.
    ///
    /// # Errors
    /// Those of `call`.
    pub(super) fn snapshot<E: From<Unsplittable>>(
        &self,
        mut call: impl FnMut(&str, &mut dyn FnMut(&[u8])) -> Result<(), E>,
    ) -> Result<Snapshot, E> {
        let mut states = Vec::with_capacity(self.modules.len());
        for (number, module) in self.modules.iter().enumerate() {
            let Some(state) = &module.state else {
                states.push(None);
                continue;
            };
            let mut read = None;
            call(&reader_export(number), &mut |bytes| read = state.read(bytes))?;
            states.push(Some(read.ok_or(Unsplittable("its state cannot be read"))?));
        }
        Ok(Snapshot(states))
    }
}

/// The name of the function that reads the state of the module with this number.
fn reader_export(number: usize) -> String {
    format!("guesthouse-state{number}")
}

fn get<T: Copy>(of: &[T], index: u32) -> Result<T, Unsplittable> {
    of.get(index as usize).copied().ok_or(Unsplittable("an index is out of range"))
}
