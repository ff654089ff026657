//! Splits a core module: the code imports the memory and the globals that a second module defines.

use std::ops::Range;

use wasm_encoder::reencode::{Reencode as _, RoundtripReencoder};
use wasm_encoder::{
    DataCountSection, DataSection, EntityType, ExportKind, ExportSection, ImportSection, Module,
    ModuleType, RawSection, SectionId,
};
use wasmparser::{
    DataKind, ExternalKind, FuncType, Global, GlobalType, Import, MemoryType, Operator, Parser,
    Payload, TableType, TypeRef,
};

use super::Unsplittable;
use super::state::{MEMORY, State, Value, global_name};

/// The name of the module with the state among the imports of the code.
pub(super) const STATE: &str = "guesthouse:state";

/// The name of the module's start function among the exports of the code, which does not run by itself.
pub(super) const START: &str = "guesthouse:start";

/// Modules with less code than this, in bytes, stay in the component if they have no state.
const MIN_CODE_BYTES: usize = 64 << 10;

/// A module in two parts.
pub(super) struct SplitModule {
    /// The code, which imports the state.
    pub(super) code: Vec<u8>,
    /// The type of the code.
    pub(super) ty: ModuleType,
    /// The memory and the globals before anything has run; `None` if there are none.
    pub(super) state: Option<State>,
    /// Whether the code exports a start function.
    pub(super) has_start: bool,
}

/// What a module consists of.
#[derive(Default)]
pub(super) struct ParsedModule<'a> {
    bytes: &'a [u8],
    sections: Vec<(u8, Range<usize>)>,
    code_bytes: usize,
    types: Vec<FuncType>,
    imports: Vec<Import<'a>>,
    /// The types of the functions, those of imported ones first; likewise the next three.
    functions: Vec<u32>,
    tables: Vec<TableType>,
    memories: Vec<MemoryType>,
    globals: Vec<GlobalType>,
    /// The memory that the module defines.
    memory: Option<MemoryType>,
    /// The globals that become a part of the state, and their values: all that the module defines if one
    /// of them may change, so that their order stays; otherwise none.
    values: Vec<(GlobalType, Value)>,
    exports: Vec<wasmparser::Export<'a>>,
    start: Option<u32>,
    data: Vec<wasmparser::Data<'a>>,
}

impl<'a> ParsedModule<'a> {
    /// Parse a module.
    ///
    /// # Errors
    /// It has a form that cannot be split.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Unsplittable> {
        let mut parsed = Self { bytes, ..Self::default() };
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload?;
            if let Some(section) = payload.as_section() {
                parsed.sections.push(section);
            }
            parsed.section(payload)?;
        }
        if parsed.memories.len() > 1 {
            return Err(Unsplittable("a module has several memories"));
        }
        Ok(parsed)
    }

    /// Whether the module may stay as it is: it has no state and little code.
    pub(super) fn may_stay(&self) -> bool {
        let is_stateless = self.memory.is_none() && self.values.is_empty() && self.start.is_none();
        is_stateless && self.code_bytes < MIN_CODE_BYTES
    }

    /// The pages that a memory must have at least which the module imports.
    pub(super) fn imported_pages(&self) -> u64 {
        let of_import = |import: &Import<'_>| match import.ty {
            TypeRef::Memory(memory) => memory.initial,
            _ => 0,
        };
        self.imports.iter().map(of_import).max().unwrap_or(0)
    }

    /// Split the module. Other modules may expect a memory that it exports to have so many pages.
    ///
    /// # Errors
    /// It has a form that cannot be split.
    pub(super) fn split(&self, expected_pages: u64) -> Result<SplitModule, Unsplittable> {
        let imports = self.state_imports(expected_pages)?;
        Ok(SplitModule {
            code: self.code(&imports)?,
            ty: self.ty(&imports)?,
            state: self.state()?,
            has_start: self.start.is_some(),
        })
    }

    fn section(&mut self, payload: Payload<'a>) -> Result<(), Unsplittable> {
        match payload {
            Payload::TypeSection(types) => {
                self.types = types.into_iter_err_on_gc_types().collect::<Result<_, _>>()?;
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    self.import(import?)?;
                }
            }
            Payload::FunctionSection(functions) => {
                for ty in functions {
                    self.functions.push(ty?);
                }
            }
            Payload::TableSection(tables) => {
                for table in tables {
                    self.tables.push(table?.ty);
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let memory = memory?;
                    self.memories.push(memory);
                    self.memory = Some(memory);
                }
            }
            Payload::GlobalSection(globals) => {
                let globals = globals.into_iter().collect::<Result<Vec<_>, _>>()?;
                self.globals.extend(globals.iter().map(|global| global.ty));
                if globals.iter().any(|global| global.ty.mutable) {
                    let value =
                        |global: &Global<'_>| Ok((global.ty, Value::parse(&global.init_expr)?));
                    self.values = globals.iter().map(value).collect::<Result<_, Unsplittable>>()?;
                }
            }
            Payload::ExportSection(exports) => {
                self.exports = exports.into_iter().collect::<Result<_, _>>()?;
            }
            Payload::StartSection { func, .. } => self.start = Some(func),
            Payload::TagSection(_) => return Err(Unsplittable("a module has exceptions")),
            Payload::DataSection(data) => {
                self.data = data.into_iter().collect::<Result<_, _>>()?;
            }
            Payload::CodeSectionStart { range, .. } => self.code_bytes = range.len(),
            Payload::CodeSectionEntry(function) => check_operators(&function)?,
            _ => {}
        }
        Ok(())
    }

    fn import(&mut self, import: Import<'a>) -> Result<(), Unsplittable> {
        if import.module == STATE {
            return Err(Unsplittable("a module imports `guesthouse:state`"));
        }
        match import.ty {
            TypeRef::Func(ty) => self.functions.push(ty),
            TypeRef::Table(table) => self.tables.push(table),
            TypeRef::Memory(memory) => self.memories.push(memory),
            TypeRef::Global(global) => self.globals.push(global),
            TypeRef::Tag(_) | TypeRef::FuncExact(_) => {
                return Err(Unsplittable("a module has exceptions"));
            }
        }
        self.imports.push(import);
        Ok(())
    }

    /// The memory, the globals and the data.
    fn state(&self) -> Result<Option<State>, Unsplittable> {
        let mut state = State { globals: self.values.clone(), ..State::default() };
        if let Some(memory) = self.memory {
            if memory.memory64 || memory.shared || memory.page_size_log2.is_some() {
                return Err(Unsplittable("a module has an unusual memory"));
            }
            state.memory = Some(memory);
        }
        for segment in &self.data {
            let DataKind::Active { offset_expr, .. } = &segment.kind else { continue };
            if self.memory.is_none() {
                return Err(Unsplittable("a module has data for the memory of another"));
            }
            let Value::I32(offset) = Value::parse(offset_expr)? else {
                return Err(Unsplittable("data has no fixed place"));
            };
            state.data.push((offset.cast_unsigned(), segment.data.to_vec()));
        }
        Ok((state.memory.is_some() || !state.globals.is_empty()).then_some(state))
    }

    /// What the code imports of the state.
    fn state_imports(
        &self,
        expected_pages: u64,
    ) -> Result<Vec<(String, EntityType)>, Unsplittable> {
        let mut imports = Vec::new();
        if let Some(memory) = self.memory {
            let mut memory = RoundtripReencoder.memory_type(memory)?;
            // Its size is part of the state, so the type promises no more than others expect.
            memory.minimum = expected_pages.min(memory.minimum);
            imports.push((MEMORY.to_owned(), EntityType::Memory(memory)));
        }
        for (index, (ty, _)) in self.values.iter().enumerate() {
            let ty = RoundtripReencoder.global_type(*ty)?;
            imports.push((global_name(index), EntityType::Global(ty)));
        }
        Ok(imports)
    }

    /// The module without its state.
    fn code(&self, state: &[(String, EntityType)]) -> Result<Vec<u8>, Unsplittable> {
        let mut imports = ImportSection::new();
        for import in &self.imports {
            RoundtripReencoder.parse_import(&mut imports, *import)?;
        }
        for (name, ty) in state {
            imports.import(STATE, name, *ty);
        }
        let mut code = Module::new();
        let (mut imports, mut has_data_count) = (Some(imports), false);
        for (id, range) in &self.sections {
            let raw = RawSection { id: *id, data: &self.bytes[range.clone()] };
            // Imports follow the types, and precede everything else that is not a custom section.
            if *id > SectionId::Import as u8
                && let Some(imports) = imports.take()
            {
                code.section(&imports);
            }
            const IMPORT: u8 = SectionId::Import as u8;
            const MEMORY: u8 = SectionId::Memory as u8;
            const GLOBAL: u8 = SectionId::Global as u8;
            const EXPORT: u8 = SectionId::Export as u8;
            const START: u8 = SectionId::Start as u8;
            const DATA_COUNT: u8 = SectionId::DataCount as u8;
            const DATA: u8 = SectionId::Data as u8;
            match *id {
                IMPORT | MEMORY | START => {}
                GLOBAL if !self.values.is_empty() => {}
                EXPORT => drop(code.section(&self.export_section())),
                DATA_COUNT => {
                    has_data_count = true;
                    let count = u32::try_from(self.data.len());
                    let count = count.map_err(|_error| Unsplittable("too much data"))?;
                    code.section(&DataCountSection { count });
                }
                // Instructions may name segments by their number. An active one is empty once it has
                // been copied, like a passive one without bytes.
                DATA if has_data_count => drop(code.section(&self.passive_data())),
                DATA => {}
                _ => drop(code.section(&raw)),
            }
        }
        Ok(code.finish())
    }

    fn export_section(&self) -> ExportSection {
        let mut exports = ExportSection::new();
        for export in &self.exports {
            exports.export(export.name, export.kind.into(), export.index);
        }
        if let Some(start) = self.start {
            exports.export(START, ExportKind::Func, start);
        }
        exports
    }

    fn passive_data(&self) -> DataSection {
        let mut data = DataSection::new();
        for segment in &self.data {
            let is_passive = matches!(segment.kind, DataKind::Passive);
            let bytes = if is_passive { segment.data } else { &[] };
            data.passive(bytes.iter().copied());
        }
        data
    }

    /// The type of the module without its state.
    fn ty(&self, state: &[(String, EntityType)]) -> Result<ModuleType, Unsplittable> {
        let mut module = ModuleType::new();
        for ty in &self.types {
            let ty = RoundtripReencoder.func_type(ty.clone())?;
            module.ty().func_type(&ty);
        }
        for import in &self.imports {
            let ty = RoundtripReencoder.entity_type(import.ty)?;
            module.import(import.module, import.name, ty);
        }
        for (name, ty) in state {
            module.import(STATE, name, *ty);
        }
        for export in &self.exports {
            module.export(export.name, self.entity_type(export.kind, export.index, state)?);
        }
        if let Some(start) = self.start {
            module.export(START, self.entity_type(ExternalKind::Func, start, state)?);
        }
        Ok(module)
    }

    fn entity_type(
        &self,
        kind: ExternalKind,
        index: u32,
        state: &[(String, EntityType)],
    ) -> Result<EntityType, Unsplittable> {
        fn get<T: Copy>(of: &[T], index: u32) -> Result<T, Unsplittable> {
            of.get(index as usize).copied().ok_or(Unsplittable("an export does not exist"))
        }
        let ty = match kind {
            ExternalKind::Func => TypeRef::Func(get(&self.functions, index)?),
            ExternalKind::Table => TypeRef::Table(get(&self.tables, index)?),
            // The first import of the state, of any size.
            ExternalKind::Memory if self.memory.is_some() => {
                return state
                    .first()
                    .map(|(_, ty)| *ty)
                    .ok_or(Unsplittable("an export does not exist"));
            }
            ExternalKind::Memory => TypeRef::Memory(get(&self.memories, index)?),
            ExternalKind::Global => TypeRef::Global(get(&self.globals, index)?),
            ExternalKind::Tag | ExternalKind::FuncExact => {
                return Err(Unsplittable("a module has exceptions"));
            }
        };
        Ok(RoundtripReencoder.entity_type(ty)?)
    }
}

/// Check that a function changes nothing that is not part of the state: no table, and not whether a segment
/// has been dropped.
fn check_operators(function: &wasmparser::FunctionBody<'_>) -> Result<(), Unsplittable> {
    let mut operators = function.get_operators_reader()?;
    while !operators.eof() {
        match operators.read()? {
            Operator::TableSet { .. }
            | Operator::TableGrow { .. }
            | Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. }
            | Operator::ElemDrop { .. } => return Err(Unsplittable("a function changes a table")),
            Operator::DataDrop { .. } => return Err(Unsplittable("a function drops data")),
            _ => {}
        }
    }
    Ok(())
}
