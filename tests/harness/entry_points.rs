//! Rewrites packed artifacts so that one entry point into the guest loops or traps, which no
//! compiler would generate. The rest of the guest stays as it is.

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

/// The section ids of core modules and of nested components in a component.
const CORE_MODULE: u8 = 1;
const COMPONENT: u8 = 4;

/// The export through which the host allocates memory in the guest.
const REALLOC: &str = "cabi_realloc";

/// The prefix of the export that frees the result of `predict`.
const POST_RETURN: &str = "cabi_post_guesthouse:model/predict";

/// An entry point into the guest, and what happens when it is entered.
#[derive(Debug, Clone, Copy)]
pub enum EntryPoint {
    /// The `start` function of the main module loops.
    Start(Iterations),
    /// The `start` function traps.
    StartTraps,
    /// The `start` function loops forever unless memory can grow by this many pages.
    StartUnlessItGrows(i32),
    /// An allocation of exactly this many bytes by the host loops.
    Realloc(i32, Iterations),
    /// The call after `predict` reiterations loops, if an allocation of exactly this many bytes preceded
    /// it.
    PostReturn(i32, Iterations),
}

/// How many iterations a loop has.
#[derive(Debug, Clone, Copy)]
pub enum Iterations {
    /// The loop never ends.
    Endless,
    /// The loop ends after this many iterations; a billion take about a second.
    Count(i64),
}

/// Rewrites an entry point of an artifact's guest.
///
/// # Panics
/// The artifact has no such entry point, or cannot be replaced.
pub fn rewrite(artifact: &Path, entry_point: EntryPoint) {
    let bytes = std::fs::read(artifact).expect("the artifact is readable");
    let rewritten = rewrite_component(&bytes, entry_point).expect("the artifact has a main module");
    replace(artifact, &rewritten);
}

/// Replaces the content of a custom section of an artifact.
///
/// # Panics
/// The artifact does not have exactly one such section, or cannot be replaced.
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

/// Writes a new file: the old one may be hard-linked from elsewhere.
fn replace(file: &Path, bytes: &[u8]) {
    std::fs::remove_file(file).expect("the folder is writable");
    std::fs::write(file, bytes).expect("the folder is writable");
}

/// The sections of a component: id, content, and the name of a custom section.
fn sections(component: &[u8]) -> Vec<(u8, Range<usize>, Option<String>)> {
    let (mut parser, mut rest, mut sections) = (Parser::new(0), component, Vec::new());
    loop {
        let chunk = parser.parse(rest, true).expect("the file is a component");
        let Chunk::Parsed { consumed, payload } = chunk else {
            panic!("the component is truncated")
        };
        rest = &rest[consumed..];
        let name = match &payload {
            Payload::CustomSection(section) => Some(section.name().to_owned()),
            Payload::ModuleSection { unchecked_range: nested, .. }
            | Payload::ComponentSection { unchecked_range: nested, .. } => {
                // Nested modules and components are skipped: they have parsers of their own.
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

/// Rewrites the main module inside a component; reiterations none if the component has no main module.
fn rewrite_component(component: &[u8], entry_point: EntryPoint) -> Option<Vec<u8>> {
    let (mut rewritten, mut found) = (Component::new(), false);
    for (id, range, _) in sections(component) {
        let data = &component[range];
        let changed = match id {
            CORE_MODULE if !found => rewrite_module(data, entry_point),
            COMPONENT if !found => rewrite_component(data, entry_point),
            _ => None,
        };
        found |= changed.is_some();
        rewritten.section(&RawSection { id, data: changed.as_deref().unwrap_or(data) });
    }
    found.then(|| rewritten.finish())
}

fn rewrite_module(module: &[u8], entry_point: EntryPoint) -> Option<Vec<u8>> {
    let mut rewriter = ModuleRewriter::new(module, entry_point)?;
    let mut rewritten = Module::new();
    let parser = Parser::new(0);
    let outcome = rewriter.parse_core_module(&mut rewritten, parser, module);
    outcome.expect("the module is well-formed");
    Some(rewritten.finish())
}

/// What is added to a main module: a global, and three functions at the end. The first is the
/// `start` function; the others wrap the functions that the host calls.
struct ModuleRewriter {
    entry_point: EntryPoint,
    realloc: FunctionRef,
    post_return: FunctionRef,
    functions: u32,
    globals: u32,
    /// The type of a function without parameters and results.
    empty_type: u32,
    has_start: bool,
}

/// A function index and the index of its type.
#[derive(Debug, Clone, Copy, Default)]
struct FunctionRef {
    function: u32,
    type_index: u32,
}

impl ModuleRewriter {
    /// Analyses a module; reiterations none if it is not the main module.
    fn new(module: &[u8], entry_point: EntryPoint) -> Option<Self> {
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
                Payload::StartSection { .. } => panic!("the module has a start function already"),
                _ => {}
            }
        }
        let find = |matches: &dyn Fn(&str) -> bool| {
            let export = exports.iter().find(|export| matches(export.name))?;
            let type_index = types[usize::try_from(export.index).expect("32 bits fit")];
            Some(FunctionRef { function: export.index, type_index })
        };
        Some(Self {
            entry_point,
            realloc: find(&|name| name == REALLOC)?,
            post_return: find(&|name| name.starts_with(POST_RETURN))?,
            functions: u32::try_from(types.len()).expect("function indices fit into 32 bits"),
            globals,
            empty_type: 0,
            has_start: false,
        })
    }

    fn start(&self) -> Function {
        let mut function = Function::new([(1, ValType::I64)]);
        let mut code = function.instructions();
        match self.entry_point {
            EntryPoint::Start(iterations) => iterations.write(&mut code, 0),
            EntryPoint::StartTraps => drop(code.unreachable()),
            EntryPoint::StartUnlessItGrows(pages) => {
                code.i32_const(pages).memory_grow(0).i32_const(-1).i32_eq().if_(BlockType::Empty);
                Iterations::Endless.write(&mut code, 0);
                code.end();
            }
            EntryPoint::Realloc(..) | EntryPoint::PostReturn(..) => {}
        }
        code.end();
        function
    }

    /// Runs before the allocation. Its parameters are the old address, the old size, the alignment
    /// and the new size.
    fn realloc(&self) -> Function {
        let mut function = Function::new([(1, ValType::I64)]);
        let mut code = function.instructions();
        if let EntryPoint::Realloc(size, _) | EntryPoint::PostReturn(size, _) = self.entry_point {
            code.local_get(3).i32_const(size).i32_eq().if_(BlockType::Empty);
            code.i32_const(1).global_set(self.globals);
            if let EntryPoint::Realloc(_, iterations) = self.entry_point {
                iterations.write(&mut code, 4);
            }
            code.end();
        }
        code.local_get(0).local_get(1).local_get(2).local_get(3).call(self.realloc.function).end();
        function
    }

    fn post_return(&self) -> Function {
        let mut function = Function::new([(1, ValType::I64)]);
        let mut code = function.instructions();
        if let EntryPoint::PostReturn(_, iterations) = self.entry_point {
            code.global_get(self.globals).if_(BlockType::Empty);
            code.i32_const(0).global_set(self.globals);
            iterations.write(&mut code, 1);
            code.end();
        }
        code.local_get(0).call(self.post_return.function).end();
        function
    }
}

impl Iterations {
    fn write(self, code: &mut InstructionSink<'_>, local: u32) {
        match self {
            Self::Endless => {
                code.loop_(BlockType::Empty).br(0).end();
            }
            Self::Count(iterations) => {
                code.i64_const(iterations).local_set(local).loop_(BlockType::Empty);
                code.local_get(local).i64_const(1).i64_sub().local_tee(local);
                code.i64_const(0).i64_ne().br_if(0).end();
            }
        }
    }
}

impl Reencode for ModuleRewriter {
    type Error = Infallible;

    fn parse_type_section(
        &mut self,
        types: &mut TypeSection,
        section: wasmparser::TypeSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_type_section(self, types, section)?;
        self.empty_type = types.len();
        types.ty().function([], []);
        Ok(())
    }

    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_function_section(self, functions, section)?;
        for added in [self.empty_type, self.realloc.type_index, self.post_return.type_index] {
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
