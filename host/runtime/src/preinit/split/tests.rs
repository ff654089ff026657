//! Components of a counter in a global and in memory, taken apart and put together again.

use wasm_encoder::{
    Alias, CanonicalFunctionSection, CodeSection, Component, ComponentAliasSection,
    ComponentExportKind, ComponentExportSection, ComponentInstanceSection, ComponentSectionId,
    ComponentTypeSection, ComponentValType, ConstExpr, DataSection, ElementSection, Elements,
    ExportKind, ExportSection, Function, FunctionSection, GlobalSection, GlobalType,
    InstanceSection, InstructionSink, MemorySection, MemoryType, Module, ModuleArg, ModuleSection,
    PrimitiveValType, RawSection, RefType, StartSection, TableSection, TableType, TypeSection,
    ValType,
};
use wasmtime::component::{Instance, Linker, WasmList};
use wasmtime::{Engine, Store};

use super::*;
use crate::guest::code_import;

/// A module that counts in a global and in its memory. Its start function counts as well, from 5.
fn counter(body: impl FnOnce(&mut InstructionSink<'_>)) -> Module {
    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([], [ValType::I32]);
    let mut functions = FunctionSection::new();
    functions.function(0).function(1);
    let mut tables = TableSection::new();
    tables.table(TableType {
        element_type: RefType::FUNCREF,
        table64: false,
        minimum: 1,
        maximum: None,
        shared: false,
    });
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: 1,
        maximum: Some(10),
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    let mut globals = GlobalSection::new();
    let mutable = GlobalType { val_type: ValType::I64, mutable: true, shared: false };
    globals.global(mutable, &ConstExpr::i64_const(5));
    let fixed = GlobalType { val_type: ValType::I32, mutable: false, shared: false };
    globals.global(fixed, &ConstExpr::i32_const(100));
    let mut exports = ExportSection::new();
    exports.export("count", ExportKind::Func, 1).export("memory", ExportKind::Memory, 0);
    let mut elements = ElementSection::new();
    elements.active(Some(0), &ConstExpr::i32_const(0), Elements::Functions((&[1]).into()));
    let mut code = CodeSection::new();
    let mut start = Function::new([]);
    start.instructions().global_get(0).i64_const(1).i64_add().global_set(0).end();
    code.function(&start);
    let at = |offset| wasm_encoder::MemArg { offset, align: 0, memory_index: 0 };
    let mut count = Function::new([]);
    let mut sink = count.instructions();
    sink.global_get(0).i64_const(1).i64_add().global_set(0);
    // The memory counts by three, from the 7 of the data, and the result is both.
    sink.global_get(1).global_get(1).i32_load8_u(at(0)).i32_const(3).i32_add().i32_store8(at(0));
    body(&mut sink);
    sink.global_get(0).i32_wrap_i64().i32_const(8).i32_shl();
    sink.global_get(1).i32_load8_u(at(0)).i32_or().end();
    code.function(&count);
    let mut data = DataSection::new();
    data.active(0, &ConstExpr::i32_const(100), [7]);
    let mut module = Module::new();
    module.section(&types).section(&functions).section(&tables).section(&memories);
    module.section(&globals).section(&exports).section(&StartSection { function_index: 0 });
    module.section(&elements).section(&code).section(&data);
    module
}

/// A component that exports the function of the module.
fn component(module: &Module) -> Vec<u8> {
    let mut component = Component::new();
    component.section(&ModuleSection(module));
    let mut instances = InstanceSection::new();
    instances.instantiate(0, <[(&str, ModuleArg); 0]>::default());
    component.section(&instances);
    let mut aliases = ComponentAliasSection::new();
    aliases.alias(Alias::CoreInstanceExport { instance: 0, kind: ExportKind::Func, name: "count" });
    component.section(&aliases);
    let mut types = ComponentTypeSection::new();
    let result = ComponentValType::Primitive(PrimitiveValType::U32);
    types.function().params::<_, ComponentValType>([]).result(Some(result));
    component.section(&types);
    let mut lift = CanonicalFunctionSection::new();
    lift.lift(0, 0, []);
    component.section(&lift);
    let mut exports = ComponentExportSection::new();
    exports.export("count", ComponentExportKind::Func, 0, None);
    component.section(&exports);
    component.finish()
}

fn instantiate(engine: &Engine, split: &SplitComponent<'_>, bytes: &[u8]) -> (Store<()>, Instance) {
    let component = wasmtime::component::Component::new(engine, bytes).unwrap();
    let mut linker = Linker::new(engine);
    for (number, (_, code)) in split.code().enumerate() {
        let module = wasmtime::Module::new(engine, code).unwrap();
        linker.root().module(&code_import(number), &module).unwrap();
    }
    let mut store = Store::new(engine, ());
    let instance = linker.instantiate(&mut store, &component).unwrap();
    (store, instance)
}

/// What the global and the memory have counted.
fn count(store: &mut Store<()>, instance: &Instance) -> (u32, u32) {
    let count = instance.get_typed_func::<(), (u32,)>(&mut *store, "count").unwrap();
    let (both,) = count.call(store, ()).unwrap();
    (both >> 8, both & 255)
}

fn read(
    split: &SplitComponent<'_>,
    store: &mut Store<()>,
    instance: &Instance,
) -> Result<Snapshot, Unsplittable> {
    split.snapshot(|name, read| {
        let reader = instance.get_typed_func::<(), (WasmList<u8>,)>(&mut *store, name).unwrap();
        let (bytes,) = reader.call(&mut *store, ()).unwrap();
        read(bytes.as_le_slice(&*store));
        Ok(())
    })
}

#[test]
fn a_snapshot_continues_where_the_state_was_read() {
    let whole = component(&counter(|_| {}));
    let split = SplitComponent::new(&whole).unwrap();
    let engine = Engine::default();
    let (mut store, instance) = instantiate(&engine, &split, &split.readable().unwrap());
    assert_eq!(count(&mut store, &instance), (7, 10), "the start function has run");
    assert_eq!(count(&mut store, &instance), (8, 13));
    let snapshot = read(&split, &mut store, &instance).unwrap();
    let after = split.after_init(snapshot).unwrap();
    for _ in 0..2 {
        let (mut store, instance) = instantiate(&engine, &split, &after);
        assert_eq!(count(&mut store, &instance), (9, 16), "and does not run again");
    }
    let (mut store, instance) = instantiate(&engine, &split, &split.before_init().unwrap());
    assert_eq!(count(&mut store, &instance), (7, 10));
}

#[test]
fn a_snapshot_keeps_the_size_of_the_memory() {
    let grow = |sink: &mut InstructionSink<'_>| {
        sink.i32_const(2).memory_grow(0).i32_const(0).i32_lt_s();
        sink.if_(wasm_encoder::BlockType::Empty).unreachable().end();
    };
    let whole = component(&counter(grow));
    let split = SplitComponent::new(&whole).unwrap();
    let engine = Engine::default();
    let (mut store, instance) = instantiate(&engine, &split, &split.readable().unwrap());
    // Of ten pages, the first two calls leave five; what reading adds is not part of the snapshot.
    count(&mut store, &instance);
    count(&mut store, &instance);
    let snapshot = read(&split, &mut store, &instance).unwrap();
    let after = split.after_init(snapshot).unwrap();
    let (mut store, instance) = instantiate(&engine, &split, &after);
    assert_eq!(count(&mut store, &instance), (9, 16));
    assert_eq!(count(&mut store, &instance), (10, 19));
    let full = instance.get_typed_func::<(), (u32,)>(&mut store, "count").unwrap();
    assert!(full.call(&mut store, ()).is_err(), "the memory has eleven pages");
}

#[test]
fn the_code_does_not_depend_on_the_data() {
    let digest = |module: &Module| {
        let whole = component(module);
        SplitComponent::new(&whole).unwrap().digests().to_vec()
    };
    let one = digest(&counter(|_| {}));
    assert_eq!(one.len(), 1);
    assert_eq!(one, digest(&counter(|_| {})));
    assert_ne!(
        one,
        digest(&counter(|sink| {
            sink.nop();
        }))
    );
}

#[test]
fn a_module_that_changes_its_table_is_not_split() {
    let set = |sink: &mut InstructionSink<'_>| {
        sink.i32_const(0).ref_null(wasm_encoder::HeapType::FUNC).table_set(0);
    };
    let whole = component(&counter(set));
    let reason = SplitComponent::new(&whole).err().unwrap().to_string();
    assert!(reason.contains("changes a table"), "{reason}");
}

/// A component with so many instances of an inner one, whose function it exports.
fn composed(inner: &[u8], instances: u32) -> Vec<u8> {
    let mut outer = Component::new();
    outer.section(&RawSection { id: ComponentSectionId::Component.into(), data: inner });
    let mut section = ComponentInstanceSection::new();
    for _ in 0..instances {
        section.instantiate(0, <[(&str, ComponentExportKind, u32); 0]>::default());
    }
    outer.section(&section);
    let mut aliases = ComponentAliasSection::new();
    let kind = ComponentExportKind::Func;
    aliases.alias(Alias::InstanceExport { instance: 0, kind, name: "count" });
    outer.section(&aliases);
    let mut exports = ComponentExportSection::new();
    exports.export("count", kind, 0, None);
    outer.section(&exports);
    outer.finish()
}

#[test]
fn a_component_in_components_is_split() {
    let twice = composed(&composed(&component(&counter(|_| {})), 1), 1);
    let split = SplitComponent::new(&twice).unwrap();
    assert_eq!(
        split.digests(),
        SplitComponent::new(&component(&counter(|_| {}))).unwrap().digests()
    );
    let engine = Engine::default();
    let (mut store, instance) = instantiate(&engine, &split, &split.readable().unwrap());
    assert_eq!(count(&mut store, &instance), (7, 10), "the start function has run");
    let snapshot = read(&split, &mut store, &instance).unwrap();
    let (mut store, instance) = instantiate(&engine, &split, &split.after_init(snapshot).unwrap());
    assert_eq!(count(&mut store, &instance), (8, 13), "and does not run again");
    let (mut store, instance) = instantiate(&engine, &split, &split.before_init().unwrap());
    assert_eq!(count(&mut store, &instance), (7, 10));
}

#[test]
fn a_component_with_several_instances_is_not_split() {
    for instances in [0, 2] {
        let inner = component(&counter(|_| {}));
        let mut outer = Component::new();
        outer.section(&RawSection { id: ComponentSectionId::Component.into(), data: &inner });
        let whole = if instances == 0 { outer.finish() } else { composed(&inner, instances) };
        let reason = SplitComponent::new(&whole).err().unwrap().to_string();
        assert!(reason.contains("a nested component has"), "{reason}");
    }
}

#[test]
fn bytes_of_another_length_are_not_a_state() {
    let state = State::default();
    assert!(state.read(&[0; 8]).is_some());
    for length in [0, 7, 9, 65_536, 65_544] {
        assert!(state.read(&vec![0; length]).is_none(), "{length}");
    }
}
