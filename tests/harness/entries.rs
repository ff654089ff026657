//! Artifacts whose guests were changed after they had been packed, so that one entry into them does
//! what no compiler makes it do. The guest itself stays what it is around it.

use std::convert::Infallible;
use std::ops::Range;
use std::path::Path;

use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
    BlockType, CodeSection, Component, ConstExpr, ExportSection, Function, FunctionSection,
    GlobalSection, GlobalType, InstructionSink, Module, RawSection, SectionId, StartSection,
    TypeSection, ValType,
};
use wasmparser::{Chunk, Export, ExternalKind, Parser, Payload, TypeRef};

/// The ids of sections of a component that hold a core module and a component.
const CORE_MODULE: u8 = 1;
const COMPONENT: u8 = 4;

/// The export by which the host has memory for what it passes to the guest.
const REALLOC: &str = "cabi_realloc";

/// Begins the name of the export by which the guest frees what `predict` returned.
const POST_RETURN: &str = "cabi_post_guesthouse:model/predict";

/// An entry into the guest, and what happens there.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// The `start` function of the main module goes round a loop.
    Start(Turns),
    /// The `start` function traps.
    StartTraps,
    /// The `start` function goes round a loop for ever unless it can have so many more pages of memory.
    StartUnlessItGrows(i32),
    /// The host's allocation of that many bytes goes round a loop.
    Realloc(i32, Turns),
    /// What is called after `predict` has returned goes round a loop, if there was such an allocation.
    PostReturn(i32, Turns),
}

/// How often something goes round a loop.
#[derive(Debug, Clone, Copy)]
pub enum Turns {
    /// For ever.
    Endless,
    /// That often, of which a thousand million take about a second.
    Count(i64),
}

/// Change an entry into the guest of an artifact.
///
/// # Panics
/// The file is no artifact with such an entry, or cannot be replaced.
pub fn alter(artifact: &Path, entry: Entry) {
    let bytes = std::fs::read(artifact).expect("the artifact is readable");
    let altered = alter_component(&bytes, entry).expect("it has the main module of a guest");
    replace(artifact, &altered);
}

/// Put other data into a custom section of an artifact.
///
/// # Panics
/// The file is no artifact with such a section, or cannot be replaced.
pub fn replace_section(artifact: &Path, name: &str, data: &[u8]) {
    let bytes = std::fs::read(artifact).expect("the artifact is readable");
    let (mut component, mut replaced) = (Component::new(), 0);
    for (id, range, found) in sections(&bytes) {
        if found.as_deref() == Some(name) {
            component
                .section(&wasm_encoder::CustomSection { name: name.into(), data: data.into() });
            replaced += 1;
        } else {
            component.section(&RawSection { id, data: &bytes[range] });
        }
    }
    assert_eq!(replaced, 1, "{name}");
    replace(artifact, &component.finish());
}

/// A new file: the old one may be linked from elsewhere.
fn replace(file: &Path, bytes: &[u8]) {
    std::fs::remove_file(file).expect("the folder is writable");
    std::fs::write(file, bytes).expect("the folder is writable");
}

/// The sections of a component: id, content, and the name of one that is custom.
fn sections(component: &[u8]) -> Vec<(u8, Range<usize>, Option<String>)> {
    let (mut parser, mut rest, mut sections) = (Parser::new(0), component, Vec::new());
    loop {
        let chunk = parser.parse(rest, true).expect("it is a component");
        let Chunk::Parsed { consumed, payload } = chunk else { panic!("it is cut off") };
        rest = &rest[consumed..];
        let name = match &payload {
            Payload::CustomSection(section) => Some(section.name().to_owned()),
            Payload::ModuleSection { unchecked_range: nested, .. }
            | Payload::ComponentSection { unchecked_range: nested, .. } => {
                // The parser leaves it to parsers of its own.
                rest = &rest[nested.len()..];
                None
            }
            Payload::End(_) => return sections,
            _ => None,
        };
        if let Some((id, range)) = payload.as_section() {
            sections.push((id, range, name));
        }
    }
}

/// The component with its main module altered; none if it is not in there.
fn alter_component(component: &[u8], entry: Entry) -> Option<Vec<u8>> {
    let (mut altered, mut found) = (Component::new(), false);
    for (id, range, _) in sections(component) {
        let data = &component[range];
        let changed = match id {
            CORE_MODULE if !found => alter_module(data, entry),
            COMPONENT if !found => alter_component(data, entry),
            _ => None,
        };
        found |= changed.is_some();
        altered.section(&RawSection { id, data: changed.as_deref().unwrap_or(data) });
    }
    found.then(|| altered.finish())
}

fn alter_module(module: &[u8], entry: Entry) -> Option<Vec<u8>> {
    let mut alteration = Alteration::new(module, entry)?;
    let mut altered = Module::new();
    let parser = Parser::new(0);
    let outcome = alteration.parse_core_module(&mut altered, parser, module);
    outcome.expect("the module is well-formed");
    Some(altered.finish())
}

/// What is added to a main module: a global, and three functions at the end, of which the first is the
/// `start` function and the others stand before those that the host calls.
struct Alteration {
    entry: Entry,
    realloc: Place,
    post_return: Place,
    functions: u32,
    globals: u32,
    /// The type of a function without parameters and results.
    plain_type: u32,
    has_start: bool,
}

/// A function and its type.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    function: u32,
    type_index: u32,
}

impl Alteration {
    /// What to add to this module; none if it is not the main one.
    fn new(module: &[u8], entry: Entry) -> Option<Self> {
        let (mut types, mut globals, mut exports) = (Vec::new(), 0, Vec::new());
        for payload in Parser::new(0).parse_all(module) {
            match payload.expect("the module is well-formed") {
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        match import.expect("the module is well-formed").ty {
                            TypeRef::Func(type_index) => types.push(type_index),
                            TypeRef::Global(_) => globals += 1,
                            _ => {}
                        }
                    }
                }
                Payload::FunctionSection(functions) => {
                    types.extend(functions.into_iter().map(|function| function.expect("a type")));
                }
                Payload::GlobalSection(section) => globals += section.count(),
                Payload::ExportSection(section) => {
                    exports.extend(section.into_iter().map(|export| export.expect("an export")));
                }
                Payload::StartSection { .. } => panic!("it has a start function"),
                _ => {}
            }
        }
        let place = |is_it: &dyn Fn(&str) -> bool| {
            let export = exports.iter().find(|export| is_it(export.name))?;
            let type_index = types[usize::try_from(export.index).expect("32 bits fit")];
            Some(Place { function: export.index, type_index })
        };
        Some(Self {
            entry,
            realloc: place(&|name| name == REALLOC)?,
            post_return: place(&|name| name.starts_with(POST_RETURN))?,
            functions: u32::try_from(types.len()).expect("the module is not as large"),
            globals,
            plain_type: 0,
            has_start: false,
        })
    }

    fn start(&self) -> Function {
        let mut function = Function::new([(1, ValType::I64)]);
        let mut code = function.instructions();
        match self.entry {
            Entry::Start(turns) => turns.write(&mut code, 0),
            Entry::StartTraps => drop(code.unreachable()),
            Entry::StartUnlessItGrows(pages) => {
                code.i32_const(pages).memory_grow(0).i32_const(-1).i32_eq().if_(BlockType::Empty);
                Turns::Endless.write(&mut code, 0);
                code.end();
            }
            Entry::Realloc(..) | Entry::PostReturn(..) => {}
        }
        code.end();
        function
    }

    /// Before the allocation: old address, old size, alignment, new size.
    fn realloc(&self) -> Function {
        let mut function = Function::new([(1, ValType::I64)]);
        let mut code = function.instructions();
        if let Entry::Realloc(size, _) | Entry::PostReturn(size, _) = self.entry {
            code.local_get(3).i32_const(size).i32_eq().if_(BlockType::Empty);
            code.i32_const(1).global_set(self.globals);
            if let Entry::Realloc(_, turns) = self.entry {
                turns.write(&mut code, 4);
            }
            code.end();
        }
        code.local_get(0).local_get(1).local_get(2).local_get(3).call(self.realloc.function).end();
        function
    }

    fn post_return(&self) -> Function {
        let mut function = Function::new([(1, ValType::I64)]);
        let mut code = function.instructions();
        if let Entry::PostReturn(_, turns) = self.entry {
            code.global_get(self.globals).if_(BlockType::Empty);
            code.i32_const(0).global_set(self.globals);
            turns.write(&mut code, 1);
            code.end();
        }
        code.local_get(0).call(self.post_return.function).end();
        function
    }
}

impl Turns {
    fn write(self, code: &mut InstructionSink<'_>, local: u32) {
        match self {
            Self::Endless => {
                code.loop_(BlockType::Empty).br(0).end();
            }
            Self::Count(turns) => {
                code.i64_const(turns).local_set(local).loop_(BlockType::Empty);
                code.local_get(local).i64_const(1).i64_sub().local_tee(local);
                code.i64_const(0).i64_ne().br_if(0).end();
            }
        }
    }
}

impl Reencode for Alteration {
    type Error = Infallible;

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_type_section(self, types, section)?;
        self.plain_type = types.len();
        types.ty().function([], []);
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_function_section(self, functions, section)?;
        for added in [self.plain_type, self.realloc.type_index, self.post_return.type_index] {
            functions.function(added);
        }
        Ok(())
    }

    fn parse_global_section(
        &mut self,
        globals: &mut GlobalSection,
        section: wasmparser::GlobalSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_global_section(self, globals, section)?;
        let flag = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
        globals.global(flag, &ConstExpr::i32_const(0));
        Ok(())
    }

    fn parse_export(
        &mut self,
        exports: &mut ExportSection,
        export: Export<'_>,
    ) -> Result<(), Error<Infallible>> {
        let is_function = export.kind == ExternalKind::Func;
        let index = match export.index {
            index if is_function && index == self.realloc.function => self.functions + 1,
            index if is_function && index == self.post_return.function => self.functions + 2,
            index => index,
        };
        utils::parse_export(self, exports, Export { index, ..export })
    }

    fn intersperse_section_hook(
        &mut self,
        module: &mut Module,
        after: Option<SectionId>,
        _before: Option<SectionId>,
    ) -> Result<(), Error<Infallible>> {
        if after == Some(SectionId::Export) && !self.has_start {
            self.has_start = true;
            module.section(&StartSection { function_index: self.functions });
        }
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: wasmparser::CodeSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_code_section(self, code, section)?;
        for added in [self.start(), self.realloc(), self.post_return()] {
            code.function(&added);
        }
        Ok(())
    }
}
