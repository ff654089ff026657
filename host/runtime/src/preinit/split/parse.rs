//! Takes a component apart: its sections in their order, those that name core modules item by item.

use wasm_encoder::{ComponentSectionId, RawSection};
use wasmparser::{
    CanonicalFunction, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ExternalKind, Instance, Parser, Payload,
};

use super::module::{ParsedModule, SplitModule};
use super::{Unsplittable, get};

/// A component.
#[derive(Default)]
pub(super) struct Node<'a> {
    pub(super) items: Vec<Item<'a>>,
    /// The numbers of the split modules in it and in nested components.
    pub(super) modules: Vec<usize>,
    pub(super) counts: Counts,
    /// For each component in it, the item of one with split modules.
    components: Vec<Option<usize>>,
}

/// How many definitions of these kinds a component has, and so the index of the next one.
#[derive(Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) core_functions: u32,
    pub(super) core_memories: u32,
    pub(super) types: u32,
    pub(super) functions: u32,
    pub(super) instances: u32,
}

/// What a component consists of.
pub(super) enum Item<'a> {
    /// A section that names no core module and no core instance.
    Other(RawSection<'a>),
    /// A core module that stays.
    Module(&'a [u8]),
    /// A core module that is split; its number.
    Split(usize),
    /// A core instance.
    Instance(Instance<'a>),
    Alias(ComponentAlias<'a>),
    /// A nested component with split modules.
    Component(Nested<'a>),
    /// An instance of a component, and the item of this component if it has split modules.
    ComponentInstance(ComponentInstance<'a>, Option<usize>),
}

/// A nested component with split modules.
pub(super) struct Nested<'a> {
    pub(super) node: Node<'a>,
    /// The index of its only instance.
    pub(super) instance: Option<u32>,
}

/// Take a component apart.
pub(super) fn parse(component: &[u8]) -> Result<(Node<'_>, Vec<SplitModule>), Unsplittable> {
    let mut parser = ComponentParser { bytes: component, modules: Vec::new(), expected_pages: 0 };
    let (mut node, mut outer, mut in_module) = (Node::default(), Vec::new(), false);
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::End(_) if in_module => in_module = false,
            _ if in_module => {}
            Payload::ModuleSection { unchecked_range, .. } => {
                parser.module(&mut node, &component[unchecked_range])?;
                in_module = true;
            }
            Payload::ComponentSection { unchecked_range, .. } => {
                outer.push((std::mem::take(&mut node), unchecked_range));
            }
            Payload::End(_) => {
                node.check_instances()?;
                if let Some((parent, range)) = outer.pop() {
                    let inner = std::mem::replace(&mut node, parent);
                    node.add_component(inner, &component[range]);
                }
            }
            payload => parser.section(&mut node, &payload)?,
        }
    }
    let split = parser.modules.iter().map(|module| module.split(parser.expected_pages));
    Ok((node, split.collect::<Result<_, _>>()?))
}

struct ComponentParser<'a> {
    bytes: &'a [u8],
    modules: Vec<ParsedModule<'a>>,
    /// The most pages that a module expects of a memory that it imports.
    expected_pages: u64,
}

impl<'a> ComponentParser<'a> {
    fn module(&mut self, node: &mut Node<'a>, module: &'a [u8]) -> Result<(), Unsplittable> {
        let parsed = ParsedModule::new(module)?;
        self.expected_pages = self.expected_pages.max(parsed.imported_pages());
        if parsed.may_stay() {
            node.items.push(Item::Module(module));
        } else {
            node.items.push(Item::Split(self.modules.len()));
            node.modules.push(self.modules.len());
            self.modules.push(parsed);
        }
        Ok(())
    }

    fn section(&self, node: &mut Node<'a>, payload: &Payload<'a>) -> Result<(), Unsplittable> {
        match payload {
            Payload::InstanceSection(instances) => {
                for instance in instances.clone() {
                    node.items.push(Item::Instance(instance?));
                }
                return Ok(());
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases.clone() {
                    node.add_alias(alias?)?;
                }
                return Ok(());
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances.clone() {
                    node.add_instance(instance?)?;
                }
                return Ok(());
            }
            Payload::CoreTypeSection(_) => return Err(Unsplittable("it defines core types")),
            Payload::ComponentStartSection { .. } => {
                return Err(Unsplittable("it has a start function"));
            }
            Payload::ComponentTypeSection(types) => node.counts.types += types.count(),
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    node.count(import?.ty.kind())?;
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone() {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Component {
                        return Err(Unsplittable("it exports components"));
                    }
                    node.count(export.kind)?;
                }
            }
            Payload::ComponentCanonicalSection(functions) => {
                for function in functions.clone() {
                    match function? {
                        CanonicalFunction::Lift { .. } => node.counts.functions += 1,
                        _ => node.counts.core_functions += 1,
                    }
                }
            }
            _ => {}
        }
        if let Some((id, range)) = payload.as_section() {
            node.items.push(Item::Other(RawSection { id, data: &self.bytes[range] }));
        }
        Ok(())
    }
}

impl<'a> Node<'a> {
    /// Count a definition. Core modules are none that can be passed on, because their indices change.
    fn count(&mut self, kind: ComponentExternalKind) -> Result<(), Unsplittable> {
        match kind {
            ComponentExternalKind::Func => self.counts.functions += 1,
            ComponentExternalKind::Type => self.counts.types += 1,
            ComponentExternalKind::Instance => self.counts.instances += 1,
            ComponentExternalKind::Component => self.components.push(None),
            ComponentExternalKind::Module => return Err(Unsplittable("it passes modules on")),
            ComponentExternalKind::Value => return Err(Unsplittable("it has values")),
        }
        Ok(())
    }

    fn add_alias(&mut self, alias: ComponentAlias<'a>) -> Result<(), Unsplittable> {
        match alias {
            ComponentAlias::InstanceExport { kind, .. } => self.count(kind)?,
            ComponentAlias::CoreInstanceExport { kind, .. } => match kind {
                ExternalKind::Func | ExternalKind::FuncExact => self.counts.core_functions += 1,
                ExternalKind::Memory => self.counts.core_memories += 1,
                ExternalKind::Table | ExternalKind::Global | ExternalKind::Tag => {}
            },
            ComponentAlias::Outer { kind, .. } => match kind {
                ComponentOuterAliasKind::Type => self.counts.types += 1,
                ComponentOuterAliasKind::CoreType => {}
                ComponentOuterAliasKind::CoreModule | ComponentOuterAliasKind::Component => {
                    return Err(Unsplittable("it takes modules or components from outside"));
                }
            },
        }
        self.items.push(Item::Alias(alias));
        Ok(())
    }

    fn add_component(&mut self, inner: Node<'a>, bytes: &'a [u8]) {
        if inner.modules.is_empty() {
            let id = ComponentSectionId::Component.into();
            self.items.push(Item::Other(RawSection { id, data: bytes }));
            self.components.push(None);
        } else {
            self.modules.extend(&inner.modules);
            self.components.push(Some(self.items.len()));
            self.items.push(Item::Component(Nested { node: inner, instance: None }));
        }
    }

    fn add_instance(&mut self, instance: ComponentInstance<'a>) -> Result<(), Unsplittable> {
        let mut of = None;
        match &instance {
            ComponentInstance::Instantiate { component_index, args } => {
                for argument in args {
                    self.check_passed(argument.kind, argument.index)?;
                }
                of = get(&self.components, *component_index)?;
            }
            ComponentInstance::FromExports(exports) => {
                for export in exports {
                    self.check_passed(export.kind, export.index)?;
                }
            }
        }
        let index = self.counts.instances;
        if let Some(Item::Component(nested)) = of.and_then(|item| self.items.get_mut(item))
            && nested.instance.replace(index).is_some()
        {
            return Err(Unsplittable("a nested component has several instances"));
        }
        self.items.push(Item::ComponentInstance(instance, of));
        self.counts.instances += 1;
        Ok(())
    }

    /// Check what is passed to an instance: no module, and no component that has to be instantiated here.
    fn check_passed(&self, kind: ComponentExternalKind, index: u32) -> Result<(), Unsplittable> {
        match kind {
            ComponentExternalKind::Module => Err(Unsplittable("it passes modules on")),
            ComponentExternalKind::Component if get(&self.components, index)?.is_some() => {
                Err(Unsplittable("it passes components on"))
            }
            _ => Ok(()),
        }
    }

    /// Check that each nested component with split modules has an instance.
    fn check_instances(&self) -> Result<(), Unsplittable> {
        let is_unused =
            |item: &Item<'_>| matches!(item, Item::Component(Nested { instance: None, .. }));
        if self.items.iter().any(is_unused) {
            return Err(Unsplittable("a nested component has no instance"));
        }
        Ok(())
    }
}
