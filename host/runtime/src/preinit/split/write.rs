//! Puts a component together again, with modules for the state and imports for the code.
//!
//! Each module of a state, and what runs a start function, is one more module and one more instance, so
//! the indices of the others change. Functions that read the state come last and change none.

use std::collections::BTreeMap;

use wasm_encoder::reencode::{ReencodeComponent as _, RoundtripReencoder};
use wasm_encoder::{
    Alias, CanonicalFunctionSection, CanonicalOption, Component, ComponentAliasSection,
    ComponentExportKind, ComponentExportSection, ComponentImportSection, ComponentInstanceSection,
    ComponentSection, ComponentSectionId, ComponentTypeRef, ComponentTypeSection, ComponentValType,
    CoreTypeSection, EntityType, ExportKind, ImportSection, InstanceSection, Module, ModuleArg,
    PrimitiveValType, RawSection, StartSection, TypeSection,
};
use wasmparser::{ComponentAlias, ComponentInstance, Instance};

use super::module::{START, STATE, SplitModule};
use super::parse::{Counts, Item, Nested, Node};
use super::state::{MEMORY, READ, State};
use super::{Unsplittable, get, reader_export};
use crate::guest::code_import;

/// What a component is written for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    /// Whether start functions run.
    starts: bool,
    /// Whether it exports functions that read the state.
    is_readable: bool,
}

impl Mode {
    pub(super) const BEFORE_INIT: Self = Self { starts: true, is_readable: false };
    pub(super) const READABLE: Self = Self { starts: true, is_readable: true };
    pub(super) const AFTER_INIT: Self = Self { starts: false, is_readable: false };
}

/// Write a component with these states of its modules.
pub(super) fn write(
    root: &Node<'_>,
    modules: &[SplitModule],
    mut states: Vec<Option<State>>,
    mode: Mode,
) -> Result<Vec<u8>, Unsplittable> {
    let mut writer = Writer::new(modules, &mut states, mode);
    writer.write(root)?;
    Ok(writer.output.finish())
}

/// Writes one component item by item.
struct Writer<'a> {
    split: &'a [SplitModule],
    /// Each is taken when it is written, because a memory may be large.
    state_of: &'a mut Vec<Option<State>>,
    mode: Mode,
    output: Component,
    /// The new index of each core module, and if it is split, its number.
    modules: Vec<(u32, Option<usize>)>,
    modules_written: u32,
    /// The new index of each core instance.
    instances: Vec<u32>,
    instances_written: u32,
    core_types_written: u32,
    /// The index of each module that is imported, by its number.
    imported: BTreeMap<usize, u32>,
    /// The core instance with the state of each split module, by its number.
    states: BTreeMap<usize, u32>,
    /// What reads the state of each of them.
    readers: Vec<(usize, Vec<u8>)>,
}

impl<'a> Writer<'a> {
    fn new(split: &'a [SplitModule], state_of: &'a mut Vec<Option<State>>, mode: Mode) -> Self {
        Self {
            split,
            state_of,
            mode,
            output: Component::new(),
            modules: Vec::new(),
            modules_written: 0,
            instances: Vec::new(),
            instances_written: 0,
            core_types_written: 0,
            imported: BTreeMap::new(),
            states: BTreeMap::new(),
            readers: Vec::new(),
        }
    }

    /// Write a component. Returns the numbers of the states that it exports functions to read.
    fn write(&mut self, node: &Node<'_>) -> Result<Vec<usize>, Unsplittable> {
        let mut nested_readers = Vec::new();
        for item in &node.items {
            match item {
                Item::Other(section) => self.section(section),
                Item::Module(module) => {
                    let index = self.add_module(module);
                    self.modules.push((index, None));
                }
                Item::Split(number) => self.add_split(*number)?,
                Item::Instance(instance) => self.copy_instance(instance)?,
                Item::Alias(alias) => self.copy_alias(alias)?,
                Item::Component(nested) => {
                    for number in self.add_component(nested)? {
                        nested_readers.push((number, nested.instance.unwrap_or_default()));
                    }
                }
                Item::ComponentInstance(instance, of) => {
                    let of = of.and_then(|item| node.items.get(item));
                    self.copy_component_instance(instance, of)?;
                }
            }
        }
        let mut counts = node.counts;
        let mut read = Vec::new();
        for (number, module) in std::mem::take(&mut self.readers) {
            self.add_reader(number, &module, &mut counts);
            read.push(number);
        }
        for (number, instance) in nested_readers {
            self.pass_reader_on(number, instance, &mut counts);
            read.push(number);
        }
        Ok(read)
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

    /// Define the state of a module, instantiate it, and import the code.
    fn add_split(&mut self, number: usize) -> Result<(), Unsplittable> {
        if let Some(state) = self.state_of.get_mut(number).and_then(Option::take) {
            let index = self.add_module(&state.module()?);
            let instance = self.add_instance(index, &[]);
            self.states.insert(number, instance);
            if self.mode.is_readable {
                self.readers.push((number, state.reader(STATE)?));
            }
        }
        let index = self.add_import(number);
        self.modules.push((index, Some(number)));
        Ok(())
    }

    /// Import the code of a module. Returns its index.
    fn add_import(&mut self, number: usize) -> u32 {
        let mut types = CoreTypeSection::new();
        types.ty().module(&self.split[number].ty);
        self.section(&types);
        let mut imports = ComponentImportSection::new();
        imports.import(&*code_import(number), ComponentTypeRef::Module(self.core_types_written));
        self.section(&imports);
        self.core_types_written += 1;
        self.imported.insert(number, self.modules_written);
        self.modules_written += 1;
        self.modules_written - 1
    }

    /// Write a nested component, which imports its code from this one.
    fn add_component(&mut self, nested: &Nested<'_>) -> Result<Vec<usize>, Unsplittable> {
        for number in &nested.node.modules {
            self.add_import(*number);
        }
        let mut inner = Writer::new(self.split, self.state_of, self.mode);
        let read = inner.write(&nested.node)?;
        let bytes = inner.output.finish();
        let id = ComponentSectionId::Component.into();
        self.section(&RawSection { id, data: &bytes });
        Ok(read)
    }

    fn copy_component_instance(
        &mut self,
        instance: &ComponentInstance<'_>,
        of: Option<&Item<'_>>,
    ) -> Result<(), Unsplittable> {
        let mut instances = ComponentInstanceSection::new();
        match (instance, of) {
            (
                ComponentInstance::Instantiate { component_index, args },
                Some(Item::Component(nested)),
            ) => {
                let arguments = args.iter().map(|argument| {
                    let kind = ComponentExportKind::from(argument.kind);
                    (argument.name.to_owned(), kind, argument.index)
                });
                let code = nested.node.modules.iter().map(|number| {
                    (code_import(*number), ComponentExportKind::Module, self.imported[number])
                });
                let arguments: Vec<_> = arguments.chain(code).collect();
                instances.instantiate(*component_index, arguments);
            }
            _ => RoundtripReencoder.parse_component_instance(&mut instances, instance.clone())?,
        }
        self.section(&instances);
        Ok(())
    }

    fn copy_instance(&mut self, instance: &Instance<'_>) -> Result<(), Unsplittable> {
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
        if let Some(state) = number.and_then(|number| self.states.get(&number)) {
            arguments.push((STATE, *state));
        }
        let index = self.add_instance(module, &arguments);
        self.instances.push(index);
        if self.mode.starts && number.is_some_and(|number| self.split[number].has_start) {
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

    /// Export a function that returns the bytes for [`State::read`].
    fn add_reader(&mut self, number: usize, module: &[u8], counts: &mut Counts) {
        let module = self.add_module(module);
        let reader = self.add_instance(module, &[(STATE, self.states[&number])]);
        let mut aliases = ComponentAliasSection::new();
        for (kind, name) in [(ExportKind::Func, READ), (ExportKind::Memory, MEMORY)] {
            aliases.alias(Alias::CoreInstanceExport { instance: reader, kind, name });
        }
        self.section(&aliases);
        let mut types = ComponentTypeSection::new();
        types.defined_type().list(ComponentValType::Primitive(PrimitiveValType::U8));
        let list = ComponentValType::Type(counts.types);
        types.function().params::<_, ComponentValType>([]).result(Some(list));
        self.section(&types);
        let mut lift = CanonicalFunctionSection::new();
        let memory = CanonicalOption::Memory(counts.core_memories);
        lift.lift(counts.core_functions, counts.types + 1, [memory]);
        self.section(&lift);
        counts.core_functions += 1;
        counts.core_memories += 1;
        counts.types += 2;
        self.export_reader(number, counts);
    }

    /// Export the function of a nested component that reads a state.
    fn pass_reader_on(&mut self, number: usize, instance: u32, counts: &mut Counts) {
        let (name, kind) = (reader_export(number), ComponentExportKind::Func);
        let mut aliases = ComponentAliasSection::new();
        aliases.alias(Alias::InstanceExport { instance, kind, name: &name });
        self.section(&aliases);
        self.export_reader(number, counts);
    }

    /// Export the function that has just been defined.
    fn export_reader(&mut self, number: usize, counts: &mut Counts) {
        let mut exports = ComponentExportSection::new();
        let kind = ComponentExportKind::Func;
        exports.export(&*reader_export(number), kind, counts.functions, None);
        self.section(&exports);
        // The function and its export.
        counts.functions += 2;
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
