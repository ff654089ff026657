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

mod module;
mod state;
#[cfg(test)]
mod tests;

use guesthouse_artifact::Digest;
use wasm_encoder::reencode::{ReencodeComponent as _, RoundtripReencoder};
use wasm_encoder::{
    Alias, CanonicalFunctionSection, CanonicalOption, Component, ComponentAliasSection,
    ComponentExportKind, ComponentExportSection, ComponentImportSection, ComponentSection,
    ComponentSectionId, ComponentTypeRef, ComponentTypeSection, ComponentValType, CoreTypeSection,
    EntityType, ExportKind, ImportSection, InstanceSection, Module, ModuleArg, PrimitiveValType,
    RawSection, StartSection, TypeSection,
};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, Instance,
    Parser, Payload, Validator, WasmFeatures,
};

use self::module::{START, STATE, SplitModule};
use self::state::{MEMORY, READ, State};
use crate::guest::code_import;

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
    items: Vec<Item<'a>>,
    modules: Vec<SplitModule>,
    digests: Vec<Digest>,
}

/// The state of the modules of a component, in their order.
pub(super) struct Snapshot(Vec<Option<State>>);

/// What a component consists of.
enum Item<'a> {
    /// A section that names no module and no core instance.
    Other(RawSection<'a>),
    /// A core module that stays.
    Module(&'a [u8]),
    /// A core module that is split; its number.
    Split(usize),
    Instance(Instance<'a>),
    Alias(ComponentAlias<'a>),
}

impl<'a> SplitComponent<'a> {
    /// Split a component.
    ///
    /// # Errors
    /// It has a form that cannot be split.
    pub(super) fn new(component: &'a [u8]) -> Result<Self, Unsplittable> {
        let mut split = Self { items: Vec::new(), modules: Vec::new(), digests: Vec::new() };
        // The depth of nested modules and components, whose sections belong to them.
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(component) {
            let payload = payload?;
            match &payload {
                Payload::ModuleSection { unchecked_range, .. } if depth == 0 => {
                    split.add_module(&component[unchecked_range.clone()])?;
                }
                Payload::ModuleSection { .. } => {
                    return Err(Unsplittable("a nested component has modules"));
                }
                _ if depth == 0 => split.add(component, &payload)?,
                Payload::ComponentAliasSection(aliases) => {
                    for alias in aliases.clone() {
                        check_alias(&alias?)?;
                    }
                }
                _ => {}
            }
            match payload {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        Ok(split)
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

    fn add_module(&mut self, module: &'a [u8]) -> Result<(), Unsplittable> {
        match SplitModule::new(module)? {
            None => self.items.push(Item::Module(module)),
            Some(split) => {
                self.items.push(Item::Split(self.modules.len()));
                self.digests.push(Digest::from_content(&split.code));
                self.modules.push(split);
            }
        }
        Ok(())
    }

    fn add(&mut self, component: &'a [u8], payload: &Payload<'a>) -> Result<(), Unsplittable> {
        match payload {
            Payload::InstanceSection(instances) => {
                for instance in instances.clone() {
                    self.items.push(Item::Instance(instance?));
                }
                return Ok(());
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases.clone() {
                    let alias = alias?;
                    check_alias(&alias)?;
                    self.items.push(Item::Alias(alias));
                }
                return Ok(());
            }
            Payload::CoreTypeSection(_) => return Err(Unsplittable("it defines core types")),
            Payload::ComponentStartSection { .. } => {
                return Err(Unsplittable("it has a start function"));
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    check_kind(import?.ty.kind())?;
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone() {
                    check_kind(export?.kind)?;
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances.clone() {
                    check_instance(&instance?)?;
                }
            }
            _ => {}
        }
        if let Some((id, range)) = payload.as_section() {
            self.items.push(Item::Other(RawSection { id, data: &component[range] }));
        }
        Ok(())
    }

    /// The component before `init`: its modules have the data of the artifact, and start functions run.
    pub(super) fn before_init(&self) -> Result<Vec<u8>, Unsplittable> {
        Ok(Writer::write(self, self.states(), true)?.output.finish())
    }

    /// The component after `init`.
    pub(super) fn after_init(&self, snapshot: Snapshot) -> Result<Vec<u8>, Unsplittable> {
        Ok(Writer::write(self, snapshot.0, false)?.output.finish())
    }

    /// [`SplitComponent::before_init`] with functions that read the state.
    pub(super) fn readable(&self) -> Result<Vec<u8>, Unsplittable> {
        let mut writer = Writer::write(self, self.states(), true)?;
        writer.add_readers(&self.states())?;
        Ok(writer.output.finish())
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

/// Check that an item is no core module, whose index would change.
fn check_kind(kind: ComponentExternalKind) -> Result<(), Unsplittable> {
    if kind == ComponentExternalKind::Module {
        return Err(Unsplittable("it passes modules on"));
    }
    Ok(())
}

fn check_alias(alias: &ComponentAlias<'_>) -> Result<(), Unsplittable> {
    match alias {
        ComponentAlias::InstanceExport { kind, .. } => check_kind(*kind),
        ComponentAlias::Outer { kind: ComponentOuterAliasKind::CoreModule, .. } => {
            check_kind(ComponentExternalKind::Module)
        }
        _ => Ok(()),
    }
}

fn check_instance(instance: &ComponentInstance<'_>) -> Result<(), Unsplittable> {
    match instance {
        ComponentInstance::Instantiate { args, .. } => {
            args.iter().try_for_each(|argument| check_kind(argument.kind))
        }
        ComponentInstance::FromExports(exports) => {
            exports.iter().try_for_each(|export| check_kind(export.kind))
        }
    }
}

/// The name of the function that reads the state of the module with this number.
fn reader_export(number: usize) -> String {
    format!("guesthouse-state{number}")
}

/// Writes a component item by item. Each module of a state, and what runs a start function, is one more
/// module and one more instance, so the indices of the others change.
struct Writer {
    output: Component,
    /// The new index of each core module, and if it is split, its number.
    modules: Vec<(u32, Option<usize>)>,
    modules_written: u32,
    /// The new index of each core instance.
    instances: Vec<u32>,
    instances_written: u32,
    core_types_written: u32,
    /// The core instance with the state of each split module.
    states: Vec<Option<u32>>,
}

impl Writer {
    fn write(
        component: &SplitComponent<'_>,
        states: Vec<Option<State>>,
        starts: bool,
    ) -> Result<Self, Unsplittable> {
        let mut writer = Self {
            output: Component::new(),
            modules: Vec::new(),
            modules_written: 0,
            instances: Vec::new(),
            instances_written: 0,
            core_types_written: 0,
            states: Vec::new(),
        };
        // Freed one by one, because a memory may be large.
        let mut states = states.into_iter();
        for item in &component.items {
            match item {
                Item::Other(section) => drop(writer.output.section(section)),
                Item::Module(module) => {
                    let index = writer.add_module(module);
                    writer.modules.push((index, None));
                }
                Item::Split(number) => {
                    let state = states.next().flatten();
                    let state = state.map(|state| state.module()).transpose()?;
                    let state = state.map(|module| {
                        let index = writer.add_module(&module);
                        writer.add_instance(index, &[])
                    });
                    writer.states.push(state);
                    writer.add_import(*number, &component.modules[*number]);
                }
                Item::Instance(instance) => writer.copy_instance(instance, component, starts)?,
                Item::Alias(alias) => writer.copy_alias(alias)?,
            }
        }
        Ok(writer)
    }

    fn section(&mut self, section: &impl ComponentSection) {
        self.output.section(section);
    }

    fn add_module(&mut self, module: &[u8]) -> u32 {
        let section = RawSection { id: ComponentSectionId::CoreModule.into(), data: module };
        self.section(&section);
        self.modules_written += 1;
        self.modules_written - 1
    }

    fn add_instance(&mut self, module: u32, arguments: &[(&str, u32)]) -> u32 {
        let mut instances = InstanceSection::new();
        let arguments = arguments.iter().map(|(name, index)| (*name, ModuleArg::Instance(*index)));
        instances.instantiate(module, arguments.collect::<Vec<_>>());
        self.section(&instances);
        self.instances_written += 1;
        self.instances_written - 1
    }

    /// Import the code of a module.
    fn add_import(&mut self, number: usize, module: &SplitModule) {
        let mut types = CoreTypeSection::new();
        types.ty().module(&module.ty);
        self.section(&types);
        let mut imports = ComponentImportSection::new();
        imports.import(&*code_import(number), ComponentTypeRef::Module(self.core_types_written));
        self.section(&imports);
        self.core_types_written += 1;
        self.modules.push((self.modules_written, Some(number)));
        self.modules_written += 1;
    }

    fn copy_instance(
        &mut self,
        instance: &Instance<'_>,
        component: &SplitComponent<'_>,
        starts: bool,
    ) -> Result<(), Unsplittable> {
        let (module_index, args) = match instance {
            Instance::Instantiate { module_index, args } => (*module_index, args),
            Instance::FromExports(exports) => {
                let mut instances = InstanceSection::new();
                let exports = exports.iter();
                let exports = exports.map(|export| (export.name, export.kind.into(), export.index));
                instances.export_items(exports.collect::<Vec<(_, ExportKind, _)>>());
                self.section(&instances);
                self.instances.push(self.instances_written);
                self.instances_written += 1;
                return Ok(());
            }
        };
        let (module, number) = get(&self.modules, module_index)?;
        let mut arguments = Vec::with_capacity(args.len() + 1);
        for argument in args {
            arguments.push((argument.name, get(&self.instances, argument.index)?));
        }
        if let Some(state) = number.and_then(|number| self.states[number]) {
            arguments.push((STATE, state));
        }
        let index = self.add_instance(module, &arguments);
        self.instances.push(index);
        if starts && number.is_some_and(|number| component.modules[number].has_start) {
            let caller = self.add_module(&start_caller());
            self.add_instance(caller, &[("code", index)]);
        }
        Ok(())
    }

    fn copy_alias(&mut self, alias: &ComponentAlias<'_>) -> Result<(), Unsplittable> {
        let mut aliases = ComponentAliasSection::new();
        match *alias {
            ComponentAlias::CoreInstanceExport { kind, instance_index, name } => {
                let instance = get(&self.instances, instance_index)?;
                aliases.alias(Alias::CoreInstanceExport { instance, kind: kind.into(), name });
            }
            _ => drop(aliases.alias(RoundtripReencoder.component_alias(alias.clone())?)),
        }
        self.section(&aliases);
        Ok(())
    }

    /// Add a function for each state that returns the bytes for [`State::read`].
    fn add_readers(&mut self, states: &[Option<State>]) -> Result<(), Unsplittable> {
        let written = self.output.clone().finish();
        let types = Validator::new_with_features(WasmFeatures::all()).validate_all(&written)?;
        let types = types.as_ref();
        let (mut functions, mut memories) = (types.function_count(), types.memory_count());
        let mut component_types = types.component_type_count();
        let mut component_functions = types.component_function_count();
        for (number, state) in states.iter().enumerate() {
            let (Some(state), Some(of)) = (state, self.states[number]) else { continue };
            let module = self.add_module(&state.reader(STATE)?);
            let reader = self.add_instance(module, &[(STATE, of)]);
            let mut aliases = ComponentAliasSection::new();
            for (kind, name) in [(ExportKind::Func, READ), (ExportKind::Memory, MEMORY)] {
                aliases.alias(Alias::CoreInstanceExport { instance: reader, kind, name });
            }
            self.section(&aliases);
            let mut types = ComponentTypeSection::new();
            types.defined_type().list(ComponentValType::Primitive(PrimitiveValType::U8));
            let list = ComponentValType::Type(component_types);
            types.function().params::<_, ComponentValType>([]).result(Some(list));
            self.section(&types);
            let mut lift = CanonicalFunctionSection::new();
            lift.lift(functions, component_types + 1, [CanonicalOption::Memory(memories)]);
            self.section(&lift);
            let mut exports = ComponentExportSection::new();
            let function = (ComponentExportKind::Func, component_functions);
            exports.export(&*reader_export(number), function.0, function.1, None);
            self.section(&exports);
            (functions, memories) = (functions + 1, memories + 1);
            // An export is one more function.
            (component_types, component_functions) = (component_types + 2, component_functions + 2);
        }
        Ok(())
    }
}

/// A module that calls the start function of the code when it is instantiated.
fn start_caller() -> Vec<u8> {
    let (mut types, mut imports) = (TypeSection::new(), ImportSection::new());
    types.ty().function([], []);
    imports.import("code", START, EntityType::Function(0));
    let mut module = Module::new();
    module.section(&types).section(&imports).section(&StartSection { function_index: 0 });
    module.finish()
}

fn get<T: Copy>(of: &[T], index: u32) -> Result<T, Unsplittable> {
    of.get(index as usize).copied().ok_or(Unsplittable("an index is out of range"))
}
