//! The state of a core module: its memory and its globals, before `init` or after it.

use wasm_encoder::reencode::{Reencode as _, RoundtripReencoder};
use wasm_encoder::{
    CodeSection, ConstExpr, DataSection, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, GlobalSection, Ieee32, Ieee64, ImportSection, MemArg, MemorySection,
    MemoryType as EncodedMemoryType, Module, TypeSection, ValType,
};
use wasmparser::{GlobalType, MemoryType, Operator};

use super::Unsplittable;

/// The name of the memory among the exports of the state.
pub(super) const MEMORY: &str = "memory";

/// The name of the function of a reader, and of what it imports.
pub(super) const READ: &str = "read";

/// The bytes of a page of memory.
const PAGE_BYTES: usize = 64 << 10;

/// The bytes in front of the globals: the address and the length of what is read.
const HEADER_BYTES: usize = 8;

/// The bytes of a global.
const GLOBAL_BYTES: usize = 8;

/// The name of a global among the exports of the state.
pub(super) fn global_name(index: usize) -> String {
    format!("global-{index}")
}

/// The value of a global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    I32(i32),
    I64(i64),
    /// The bits.
    F32(u32),
    /// The bits.
    F64(u64),
}

/// The memory and the globals of a module.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) memory: Option<MemoryType>,
    /// What the memory contains, by address; the rest is zero.
    pub(super) data: Vec<(u32, Vec<u8>)>,
    pub(super) globals: Vec<(GlobalType, Value)>,
}

impl Value {
    /// The value of a constant expression that is a number.
    pub(super) fn parse(expression: &wasmparser::ConstExpr<'_>) -> Result<Self, Unsplittable> {
        let mut operators = expression.get_operators_reader();
        let value = match operators.read()? {
            Operator::I32Const { value } => Self::I32(value),
            Operator::I64Const { value } => Self::I64(value),
            Operator::F32Const { value } => Self::F32(value.bits()),
            Operator::F64Const { value } => Self::F64(value.bits()),
            _ => return Err(Unsplittable("a global or the place of data is not a plain number")),
        };
        if !matches!(operators.read()?, Operator::End) {
            return Err(Unsplittable("a global or the place of data is computed"));
        }
        Ok(value)
    }

    fn expression(self) -> ConstExpr {
        match self {
            Self::I32(value) => ConstExpr::i32_const(value),
            Self::I64(value) => ConstExpr::i64_const(value),
            Self::F32(bits) => ConstExpr::f32_const(Ieee32::new(bits)),
            Self::F64(bits) => ConstExpr::f64_const(Ieee64::new(bits)),
        }
    }

    /// A value of the same type from its bytes.
    fn with_bytes(self, bytes: [u8; GLOBAL_BYTES]) -> Self {
        let [a, b, c, d, ..] = bytes;
        match self {
            Self::I32(_) => Self::I32(i32::from_le_bytes([a, b, c, d])),
            Self::I64(_) => Self::I64(i64::from_le_bytes(bytes)),
            Self::F32(_) => Self::F32(u32::from_le_bytes([a, b, c, d])),
            Self::F64(_) => Self::F64(u64::from_le_bytes(bytes)),
        }
    }
}

impl State {
    /// A module that defines and exports the state.
    pub(super) fn module(&self) -> Result<Vec<u8>, Unsplittable> {
        let (mut module, mut exports) = (Module::new(), ExportSection::new());
        if let Some(memory) = self.memory {
            let mut memories = MemorySection::new();
            memories.memory(RoundtripReencoder.memory_type(memory)?);
            module.section(&memories);
            exports.export(MEMORY, ExportKind::Memory, 0);
        }
        let mut globals = GlobalSection::new();
        for (index, (ty, value)) in (0_u32..).zip(&self.globals) {
            globals.global(RoundtripReencoder.global_type(*ty)?, &value.expression());
            exports.export(&global_name(index as usize), ExportKind::Global, index);
        }
        module.section(&globals);
        module.section(&exports);
        let mut data = DataSection::new();
        for (offset, bytes) in &self.data {
            let offset = ConstExpr::i32_const(offset.cast_signed());
            data.active(0, &offset, bytes.iter().copied());
        }
        module.section(&data);
        Ok(module.finish())
    }

    /// A module that reads the state of an instance of [`State::module`], which it imports from the module
    /// `state`. It exports a function [`READ`], whose result is the address of the address and the length
    /// of the bytes for [`State::read`], and the [`MEMORY`] that these are in.
    ///
    /// They have to be in the memory that is read, so it grows by a page. The globals follow in this page.
    pub(super) fn reader(&self, state: &str) -> Result<Vec<u8>, Unsplittable> {
        let (mut types, mut imports) = (TypeSection::new(), ImportSection::new());
        types.ty().function([], [ValType::I32]);
        let mut memories = MemorySection::new();
        match self.memory {
            Some(memory) => {
                let memory = RoundtripReencoder.memory_type(memory)?;
                imports.import(state, MEMORY, EntityType::Memory(memory));
            }
            None => {
                memories.memory(EncodedMemoryType {
                    minimum: 0,
                    maximum: None,
                    memory64: false,
                    shared: false,
                    page_size_log2: None,
                });
            }
        }
        for (index, (ty, _)) in self.globals.iter().enumerate() {
            let ty = RoundtripReencoder.global_type(*ty)?;
            imports.import(state, &global_name(index), EntityType::Global(ty));
        }
        let (mut functions, mut exports) = (FunctionSection::new(), ExportSection::new());
        functions.function(0);
        exports.export(READ, ExportKind::Func, 0).export(MEMORY, ExportKind::Memory, 0);
        let mut code = CodeSection::new();
        code.function(&self.read_function()?);
        let mut module = Module::new();
        module.section(&types).section(&imports).section(&functions).section(&memories);
        module.section(&exports).section(&code);
        Ok(module.finish())
    }

    fn read_function(&self) -> Result<Function, Unsplittable> {
        let at = |offset: usize| MemArg { offset: offset as u64, align: 2, memory_index: 0 };
        let end = HEADER_BYTES + GLOBAL_BYTES * self.globals.len();
        let length = i32::try_from(end).ok().filter(|_| end <= PAGE_BYTES);
        let length = length.ok_or(Unsplittable("a module has too many globals"))?;
        let page = 0;
        let mut function = Function::new([(1, ValType::I32)]);
        let mut body = function.instructions();
        body.i32_const(1).memory_grow(0).local_tee(page);
        body.i32_const(-1).i32_eq().if_(wasm_encoder::BlockType::Empty).unreachable().end();
        body.local_get(page).i32_const(16).i32_shl().local_set(page);
        // The bytes begin with the memory, at address 0, and end with the globals.
        body.local_get(page).i32_const(0).i32_store(at(0));
        body.local_get(page).local_get(page).i32_const(length).i32_add().i32_store(at(4));
        for (index, (_, value)) in (0_u32..).zip(&self.globals) {
            let to = at(HEADER_BYTES + GLOBAL_BYTES * index as usize);
            body.local_get(page).global_get(index);
            match value {
                Value::I32(_) => body.i32_store(to),
                Value::I64(_) => body.i64_store(to),
                Value::F32(_) => body.f32_store(to),
                Value::F64(_) => body.f64_store(to),
            };
        }
        body.local_get(page).end();
        Ok(function)
    }

    /// The state of the same module that a reader has read; `None` if the bytes are not those of one.
    pub(super) fn read(&self, bytes: &[u8]) -> Option<Self> {
        let end = HEADER_BYTES + GLOBAL_BYTES * self.globals.len();
        let (memory, rest) = bytes.split_at_checked(bytes.len().checked_sub(end)?)?;
        let (pages, odd) = memory.as_chunks::<PAGE_BYTES>();
        if !odd.is_empty() || (self.memory.is_none() && !pages.is_empty()) {
            return None;
        }
        let minimum = |memory: MemoryType| MemoryType { initial: pages.len() as u64, ..memory };
        let (values, _) = rest.get(HEADER_BYTES..)?.as_chunks::<GLOBAL_BYTES>();
        let globals = self.globals.iter().zip(values);
        Some(Self {
            memory: self.memory.map(minimum),
            data: used_pages(pages),
            globals: globals.map(|((ty, value), bytes)| (*ty, value.with_bytes(*bytes))).collect(),
        })
    }
}

/// The runs of pages that are not all zero.
fn used_pages(pages: &[[u8; PAGE_BYTES]]) -> Vec<(u32, Vec<u8>)> {
    let mut runs: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut was_used = false;
    for (address, page) in (0_u32..).step_by(PAGE_BYTES).zip(pages) {
        let is_used = page.iter().any(|byte| *byte != 0);
        match runs.last_mut() {
            Some((_, run)) if is_used && was_used => run.extend_from_slice(page),
            _ if is_used => runs.push((address, page.to_vec())),
            _ => {}
        }
        was_used = is_used;
    }
    runs
}
