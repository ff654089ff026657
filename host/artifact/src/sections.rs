//! Scans the top-level sections of a component in one pass, without running anything.
//!
//! The file is untrusted and this runs in the host's own process: time is linear in the number of
//! sections, memory is bounded by the limits below whatever the size of the file, and nested
//! content is skipped. Whether nested modules are valid is checked in the child process.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use wasmparser::{
    BinaryReader, BinaryReaderError, ComponentExportSectionReader, ComponentImportSectionReader,
    Parser,
};

use super::source::{Cursor, ReadAt};
use super::{
    ASSET_SECTION_PREFIX, ArtifactError, ArtifactMetadata, DESCRIPTOR_SECTION, GOLDEN_SECTION,
    SIGNATURE_SECTION, golden,
};
use guesthouse_model::VersionId;

/// The size of a component's header: the magic number and the version of the format.
const HEADER_BYTES: usize = 8;

/// The section with the names of the component and of its items.
const NAME_SECTION: &str = "component-name";

/// The ids of the sections that are parsed.
const CUSTOM_ID: u8 = 0;
const IMPORT_ID: u8 = 10;
const EXPORT_ID: u8 = 11;

/// The largest section of imports or exports, in bytes: the allowed number, with the longest names
/// and types.
const MAX_INTERFACE_SECTION_BYTES: usize = MAX_INTERFACES * (MAX_NAME_BYTES + 64);

/// The interfaces that a guest must export, without their version.
const REQUIRED_EXPORTS: [&str; 2] = ["guesthouse:model/lifecycle", "guesthouse:model/predict"];

/// The prefixes of interfaces that a guest may import.
const ALLOWED_IMPORTS: [&str; 2] = ["guesthouse:model/", "wasi:"];

/// The version of the contract that this host implements; see `wit/model.wit`.
pub const CONTRACT_VERSION: &str = "0.2.2";

/// The versions of the contract whose artifacts this host serves, oldest first: all that were
/// published since the last breaking change. Later versions only add to earlier ones.
pub const CONTRACT_VERSIONS: [&str; 3] = ["0.2.0", "0.2.1", CONTRACT_VERSION];

/// The prefix of the names of this format's own sections.
const OWN_PREFIX: &str = "guesthouse:";

/// The sections of the component's metadata, as WebAssembly tools write them.
const METADATA_SECTIONS: [&str; 6] =
    ["version", "description", "licenses", "authors", "source", "revision"];

/// The most top-level sections. Linkers create some hundreds, and every asset is one.
const MAX_SECTIONS: usize = 10_000;

/// The most imports, and the most exports: the whole of WASI is about fifty interfaces.
const MAX_INTERFACES: usize = 1000;

/// The longest name of a section or an interface, in bytes; that of an asset's section has at most
/// 144.
const MAX_NAME_BYTES: usize = 1024;

/// The largest metadata section, in bytes; a long description has some hundreds.
const MAX_METADATA_BYTES: usize = 64 << 10;

/// The longest version, in bytes: it must fit into a selector, after its `=`.
const MAX_VERSION_BYTES: usize = 128;

/// The largest descriptor or signature, in bytes: 1024 fields with a line of description each.
const MAX_JSON_BYTES: usize = 1 << 20;

/// The most subsections of a `component-name` section that are read; there are 14 kinds.
const MAX_NAME_PARTS: usize = 64;

/// The top-level sections of a component.
#[derive(Default)]
pub(super) struct Sections {
    /// The metadata sections and this format's own sections.
    pub(super) custom: BTreeMap<String, Range<usize>>,
    /// Everything except custom sections, in order, as few ranges as possible.
    pub(super) code: Vec<Range<usize>>,
    pub(super) imports: Vec<String>,
    pub(super) exports: Vec<String>,
    name: Option<String>,
}

impl Sections {
    pub(super) fn scan<R: ReadAt + ?Sized>(file: &R) -> Result<Self, ArtifactError> {
        let header = file.bytes(0..file.length().min(HEADER_BYTES));
        check_magic(&header.map_err(ArtifactError::Read)?)?;
        let mut sections = Self::default();
        sections.add_code(0..HEADER_BYTES);
        let mut cursor = Cursor::new(file, HEADER_BYTES..file.length());
        for _ in 1..MAX_SECTIONS {
            let start = cursor.position();
            if cursor.rest().is_empty() {
                return Ok(sections);
            }
            let (id, body) = (cursor.byte()?, cursor.part()?);
            match id {
                CUSTOM_ID => sections.custom(file, body)?,
                IMPORT_ID => {
                    let bytes = interfaces(file, body.clone())?;
                    let reader = BinaryReader::new(&bytes, body.start);
                    for import in ComponentImportSectionReader::new(reader).map_err(malformed)? {
                        let name = import.map_err(malformed)?.name.name;
                        add_interface(&mut sections.imports, name)?;
                    }
                }
                EXPORT_ID => {
                    let bytes = interfaces(file, body.clone())?;
                    let reader = BinaryReader::new(&bytes, body.start);
                    for export in ComponentExportSectionReader::new(reader).map_err(malformed)? {
                        let name = export.map_err(malformed)?.name.name;
                        add_interface(&mut sections.exports, name)?;
                    }
                }
                // Validated in the child process.
                _ => {}
            }
            if id != CUSTOM_ID {
                sections.add_code(start..cursor.position());
            }
        }
        Err(over(format!("more than {MAX_SECTIONS} sections")))
    }

    fn add_code(&mut self, range: Range<usize>) {
        match self.code.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.code.push(range),
        }
    }

    fn custom<R: ReadAt + ?Sized>(
        &mut self,
        file: &R,
        body: Range<usize>,
    ) -> Result<(), ArtifactError> {
        let mut cursor = Cursor::new(file, body);
        let name = text(file, cursor.part()?)?;
        let data = cursor.rest();
        let twice = || format!("it has the section {name:?} twice");
        if name == NAME_SECTION {
            if let Some(own) = component_name(file, data)?
                && self.name.replace(own).is_some()
            {
                return Err(ArtifactError::Malformed("it has two names".to_owned()));
            }
            return Ok(());
        }
        let own = name.starts_with(OWN_PREFIX);
        if !own && !METADATA_SECTIONS.contains(&name.as_str()) {
            return Ok(());
        }
        let most = match name.as_str() {
            GOLDEN_SECTION => golden::MAX_BYTES,
            DESCRIPTOR_SECTION | SIGNATURE_SECTION => MAX_JSON_BYTES,
            _ if own => usize::MAX,
            _ => MAX_METADATA_BYTES,
        };
        if data.len() > most {
            return Err(over(format!("the section {name:?} is larger than {} KiB", most >> 10)));
        }
        if self.custom.contains_key(&name) {
            // Readers would disagree which one counts.
            return Err(match own {
                true => ArtifactError::NotPacked(twice()),
                false => ArtifactError::Malformed(twice()),
            });
        }
        self.custom.insert(name, data);
        Ok(())
    }

    pub(super) fn check_world(&self) -> Result<(), ArtifactError> {
        for required in REQUIRED_EXPORTS {
            let version = |export: &String| {
                Some(export.strip_prefix(required)?.strip_prefix('@')?.to_owned())
            };
            let versions: Vec<_> = self.exports.iter().filter_map(version).collect();
            match versions.first() {
                Some(_) if versions.iter().any(|it| CONTRACT_VERSIONS.contains(&it.as_str())) => {}
                Some(other) => return Err(ArtifactError::OtherContract { version: other.clone() }),
                None => {
                    let wanted = format!("{required}@{CONTRACT_VERSION}");
                    return Err(ArtifactError::WrongWorld(format!(
                        "it does not export `{wanted}`"
                    )));
                }
            }
        }
        let foreign = self
            .imports
            .iter()
            .find(|import| !ALLOWED_IMPORTS.iter().any(|allowed| import.starts_with(allowed)));
        match foreign {
            None => Ok(()),
            Some(import) => Err(ArtifactError::WrongWorld(format!("it imports `{import}`"))),
        }
    }

    /// Whether the component was packed before.
    pub(super) fn is_packed(&self) -> bool {
        self.custom.keys().any(|name| name.starts_with(OWN_PREFIX))
    }

    /// The model, the version and the metadata.
    pub(super) fn identity<R: ReadAt + ?Sized>(
        &self,
        file: &R,
    ) -> Result<(VersionId, ArtifactMetadata), ArtifactError> {
        let not_packed = |what: String| ArtifactError::NotPacked(what);
        let name = self.name.as_deref().unwrap_or_default();
        let name = name.parse().map_err(|error| {
            not_packed(format!("the component's name is {name:?}, but {error}"))
        })?;
        let version = self.text(file, "version")?.unwrap_or_default();
        if version.len() > MAX_VERSION_BYTES {
            return Err(over(format!("the version is longer than {MAX_VERSION_BYTES} bytes")));
        }
        let version = version.parse().map_err(|error| {
            not_packed(format!("the version {version:?} is not semver: {error}"))
        })?;
        let metadata = ArtifactMetadata {
            description: self.text(file, "description")?,
            licenses: self.text(file, "licenses")?,
            authors: self.text(file, "authors")?,
            source: self.text(file, "source")?,
            revision: self.text(file, "revision")?,
        };
        Ok((VersionId { name, version }, metadata))
    }

    pub(super) fn json<T: for<'a> Deserialize<'a>>(
        &self,
        file: &impl ReadAt,
        section: &str,
    ) -> Result<Option<T>, ArtifactError> {
        let Some(range) = self.custom.get(section) else {
            return Ok(None);
        };
        serde_json::from_slice(&file.bytes(range.clone()).map_err(ArtifactError::Read)?)
            .map(Some)
            .map_err(|error| ArtifactError::NotPacked(format!("{section}: {error}")))
    }

    pub(super) fn assets(&self) -> BTreeMap<String, Range<usize>> {
        let asset = |(section, range): (&String, &Range<usize>)| {
            Some((section.strip_prefix(ASSET_SECTION_PREFIX)?.to_owned(), range.clone()))
        };
        self.custom.iter().filter_map(asset).collect()
    }

    fn text<R: ReadAt + ?Sized>(
        &self,
        file: &R,
        section: &str,
    ) -> Result<Option<String>, ArtifactError> {
        let Some(range) = self.custom.get(section) else { return Ok(None) };
        let bytes = file.bytes(range.clone()).map_err(ArtifactError::Read)?;
        Ok(String::from_utf8(bytes).ok())
    }
}

fn check_magic(bytes: &[u8]) -> Result<(), ArtifactError> {
    if bytes.starts_with(b"\x7fELF") {
        return Err(ArtifactError::Precompiled);
    }
    if Parser::is_component(bytes) {
        return Ok(());
    }
    if Parser::is_core_wasm(bytes) {
        return Err(ArtifactError::CoreModule);
    }
    Err(ArtifactError::NotWasm)
}

fn add_interface(interfaces: &mut Vec<String>, name: &str) -> Result<(), ArtifactError> {
    check_name(name)?;
    if interfaces.len() == MAX_INTERFACES {
        return Err(over(format!("more than {MAX_INTERFACES} imports or exports")));
    }
    interfaces.push(name.to_owned());
    Ok(())
}

fn check_name(name: &str) -> Result<(), ArtifactError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(over(format!("a name is longer than {MAX_NAME_BYTES} bytes")));
    }
    Ok(())
}

/// Read the component's own name; the names of its items are skipped.
fn component_name<R: ReadAt + ?Sized>(
    file: &R,
    section: Range<usize>,
) -> Result<Option<String>, ArtifactError> {
    /// The subsection with the component's own name.
    const COMPONENT: u8 = 0;
    let mut cursor = Cursor::new(file, section);
    let mut own = None;
    for _ in 0..MAX_NAME_PARTS {
        if cursor.rest().is_empty() {
            break;
        }
        let (id, part) = (cursor.byte()?, cursor.part()?);
        if id == COMPONENT {
            let name = text(file, Cursor::new(file, part).part()?)?;
            if own.replace(name).is_some() {
                return Err(ArtifactError::Malformed("it has two names".to_owned()));
            }
        }
    }
    Ok(own)
}

/// Read a name.
fn text<R: ReadAt + ?Sized>(file: &R, range: Range<usize>) -> Result<String, ArtifactError> {
    if range.len() > MAX_NAME_BYTES {
        return Err(over(format!("a name is longer than {MAX_NAME_BYTES} bytes")));
    }
    let start = range.start;
    String::from_utf8(file.bytes(range).map_err(ArtifactError::Read)?)
        .map_err(|_error| ArtifactError::Malformed(format!("a name without UTF-8 at byte {start}")))
}

/// Read a section of imports or exports.
fn interfaces<R: ReadAt + ?Sized>(file: &R, body: Range<usize>) -> Result<Vec<u8>, ArtifactError> {
    if body.len() > MAX_INTERFACE_SECTION_BYTES {
        return Err(over(format!("more than {MAX_INTERFACES} imports or exports")));
    }
    file.bytes(body).map_err(ArtifactError::Read)
}

fn malformed(error: BinaryReaderError) -> ArtifactError {
    ArtifactError::Malformed(format!("{} at byte {}", error.message(), error.offset()))
}

fn over(what: String) -> ArtifactError {
    ArtifactError::OverLimit(what)
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{
        Component, ComponentExportKind, ComponentExportSection, CustomSection,
        NestedComponentSection,
    };

    use super::*;

    fn custom(component: &mut Component, name: &str, data: &[u8]) {
        component.section(&CustomSection { name: name.into(), data: data.into() });
    }

    fn is_over(component: Component) -> bool {
        matches!(Sections::scan(&component.finish()[..]), Err(ArtifactError::OverLimit(_)))
    }

    #[test]
    fn unknown_sections_are_skipped_and_limits_enforced() {
        let mut many = Component::new();
        (0..MAX_SECTIONS - 2).for_each(|_| custom(&mut many, "", b""));
        let sections = Sections::scan(many.as_slice()).unwrap();
        assert!(sections.custom.is_empty());
        custom(&mut many, "", b"");
        assert!(is_over(many));
        for (name, most) in [
            (GOLDEN_SECTION, golden::MAX_BYTES),
            (DESCRIPTOR_SECTION, MAX_JSON_BYTES),
            (SIGNATURE_SECTION, MAX_JSON_BYTES),
            ("description", MAX_METADATA_BYTES),
        ] {
            let mut enough = Component::new();
            custom(&mut enough, name, &vec![b' '; most]);
            assert!(Sections::scan(&enough.finish()[..]).unwrap().custom.contains_key(name));
            let mut large = Component::new();
            custom(&mut large, name, &vec![b' '; most + 1]);
            assert!(is_over(large), "{name}");
        }
        let mut long = Component::new();
        custom(&mut long, &"x".repeat(MAX_NAME_BYTES + 1), b"");
        assert!(is_over(long));
    }

    #[test]
    fn the_code_excludes_custom_sections() {
        let component = |version: Option<&str>| {
            let mut inner = Component::new();
            custom(&mut inner, "name", b"stays");
            let mut exports = ComponentExportSection::new();
            exports.export("f", ComponentExportKind::Func, 0, None);
            let mut component = Component::new();
            component.section(&NestedComponentSection(&inner));
            version.iter().for_each(|version| custom(&mut component, "a", version.as_bytes()));
            component.section(&exports);
            component.section(&NestedComponentSection(&inner));
            version.iter().for_each(|version| custom(&mut component, "b", version.as_bytes()));
            component.finish()
        };
        let code = |bytes: &[u8]| {
            let sections = Sections::scan(bytes).unwrap();
            sections.code.iter().map(|range| &bytes[range.clone()]).collect::<Vec<_>>().concat()
        };
        let bare = component(None);
        assert_eq!(code(&bare), bare);
        assert_eq!(code(&component(Some("1.0.0"))), bare);
        assert_eq!(Sections::scan(&component(Some("2"))[..]).unwrap().code.len(), 2);
    }

    #[test]
    fn the_number_and_length_of_exports_is_bounded() {
        let exporting = |names: &mut dyn Iterator<Item = String>| {
            let mut exports = ComponentExportSection::new();
            names.for_each(|name| {
                exports.export(name.as_str(), ComponentExportKind::Func, 0, None);
            });
            let mut component = Component::new();
            component.section(&exports);
            component
        };
        let names = |count: usize| (0..count).map(|index| format!("f{index}"));
        let enough = exporting(&mut names(MAX_INTERFACES)).finish();
        assert_eq!(Sections::scan(&enough[..]).unwrap().exports.len(), MAX_INTERFACES);
        assert!(is_over(exporting(&mut names(MAX_INTERFACES + 1))));
        assert!(is_over(exporting(&mut std::iter::once("f".repeat(MAX_NAME_BYTES + 1)))));
    }

    #[test]
    fn nested_content_is_skipped_but_must_be_complete() {
        let mut inner = Component::new();
        custom(&mut inner, "version", b"9.9.9");
        let mut outer = Component::new();
        outer.section(&NestedComponentSection(&inner));
        custom(&mut outer, "version", b"1.0.0");
        let bytes = outer.finish();
        let sections = Sections::scan(&bytes[..]).unwrap();
        let version = sections.text(&bytes[..], "version").unwrap();
        assert_eq!(version.as_deref(), Some("1.0.0"));
        let cut = &bytes[..20];
        assert!(matches!(Sections::scan(cut), Err(ArtifactError::Malformed(_))));

        // Deeply nested components, which would need a parser for every level if they were entered.
        let mut nested = Component::new().finish();
        for _ in 0..2000 {
            let mut outer = Component::new();
            outer.section(&wasm_encoder::RawSection { id: 4, data: &nested });
            nested = outer.finish();
        }
        assert!(Sections::scan(&nested[..]).is_ok());
    }

    #[test]
    fn repeated_names_and_sections_are_rejected() {
        let name = |name: &str| {
            let mut part = vec![u8::try_from(name.len()).unwrap()];
            part.extend(name.as_bytes());
            let mut section = vec![0, u8::try_from(part.len()).unwrap()];
            section.extend(part);
            section
        };
        let scan = |parts: &[(&str, &[u8])]| {
            let mut component = Component::new();
            parts.iter().for_each(|(name, data)| custom(&mut component, name, data));
            Sections::scan(&component.finish()[..])
        };
        let (one, two, no_name) = (name("one"), name("two"), [1, 0]);
        let named = scan(&[(NAME_SECTION, &one), (NAME_SECTION, &no_name)]).unwrap();
        assert_eq!(named.name.as_deref(), Some("one"));
        let both = [one.clone(), two.clone()].concat();
        let twice =
            [scan(&[(NAME_SECTION, &one), (NAME_SECTION, &two)]), scan(&[(NAME_SECTION, &both)])];
        let twice_of_each = METADATA_SECTIONS.map(|name| scan(&[(name, b"1"), (name, b"1")]));
        for scanned in twice.into_iter().chain(twice_of_each) {
            assert!(matches!(scanned, Err(ArtifactError::Malformed(_))));
        }
        let own = scan(&[(GOLDEN_SECTION, b""), (GOLDEN_SECTION, b"")]);
        assert!(matches!(own, Err(ArtifactError::NotPacked(_))));
    }
}
