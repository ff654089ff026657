//! Artifacts: one `.wasm` file that holds a component and everything that travels with it.
//!
//! Owns the file format: the component's own metadata (name, version, description, licence, as
//! WebAssembly tools write and read them) and the `guesthouse:*` custom sections. Reading walks
//! the sections and runs nothing; it is bounded by [`MAX_ARTIFACT_BYTES`]. What the component does
//! when it runs is left to `preinit`.

mod file;
mod golden;
mod manifest;
mod pack;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wasmparser::{Parser, Payload};

pub use file::MAX_ARTIFACT_BYTES;
pub use golden::{GoldenExample, Tolerances};
pub use manifest::{Descriptor, Manifest};
pub use pack::{PackError, add_signature, draft};

use crate::model::{Signature, SignatureError, VersionId};
use file::read_limited;

/// The interfaces that make a component a guest, without their version.
const REQUIRED_EXPORTS: [&str; 2] = ["guesthouse:model/lifecycle", "guesthouse:model/predict"];

/// What a guest may import; anything else is another world's component.
const ALLOWED_IMPORTS: [&str; 2] = ["guesthouse:model/", "wasi:"];

/// The version of the contract that this host speaks; see `wit/model.wit`.
const CONTRACT_VERSION: &str = "0.1.0";

const DESCRIPTOR_SECTION: &str = "guesthouse:descriptor";
const SIGNATURE_SECTION: &str = "guesthouse:signature";
const GOLDEN_SECTION: &str = "guesthouse:golden";
const ASSET_SECTION_PREFIX: &str = "guesthouse:asset/";

/// The SHA-256 of an artifact's bytes, written `sha256:…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest in hexadecimal, without the algorithm's name: for file names.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// What the component's own metadata says, besides name and version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the component's metadata, by their names")]
pub struct Metadata {
    pub description: Option<String>,
    pub licenses: Option<String>,
    pub authors: Option<String>,
    pub source: Option<String>,
    pub revision: Option<String>,
}

/// A file does not hold an artifact that this host can serve.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[source] io::Error),
    /// The file is larger than any artifact.
    #[error("it is larger than {} MiB", MAX_ARTIFACT_BYTES >> 20)]
    TooLarge,
    /// Neither a component nor anything else that is known here.
    #[error("it is not a WebAssembly file")]
    NotWasm,
    /// A core module, which has no typed interface.
    #[error("it is a core WebAssembly module, not a component")]
    CoreModule,
    /// Native code, such as a `.cwasm` file: only the host itself makes those.
    #[error("it is precompiled native code, which is never loaded from outside")]
    Precompiled,
    /// It begins like a component and ends or goes on like something else.
    #[error("it is not a whole component: {0}")]
    Malformed(String),
    /// It is a component, but not a guest.
    #[error("it is a component of another world: {0}")]
    WrongWorld(String),
    /// It is a guest, but not packed: what `guesthouse pack` adds is missing or damaged.
    #[error("it is not a packed artifact: {0}")]
    NotPacked(String),
}

/// One artifact, read and checked, but not run.
pub struct Artifact {
    bytes: Vec<u8>,
    digest: Digest,
    id: VersionId,
    metadata: Metadata,
    descriptor: Descriptor,
    signature: Option<Signature>,
    golden: Vec<GoldenExample>,
    assets: BTreeMap<String, Range<usize>>,
    imports: Vec<String>,
    exports: Vec<String>,
}

impl fmt::Debug for Artifact {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Artifact({} {})", self.id, self.digest)
    }
}

impl Artifact {
    /// Read and check the artifact in a file.
    ///
    /// # Errors
    /// [`ArtifactError`] with the first thing that is wrong.
    pub fn open(path: &Path) -> Result<Self, ArtifactError> {
        let artifact = Self::open_draft(path)?;
        if artifact.signature.is_none() {
            return Err(ArtifactError::NotPacked(format!("no {SIGNATURE_SECTION}")));
        }
        Ok(artifact)
    }

    /// Like [`Artifact::open`], but the signature may be missing: `pack` adds it last, when the
    /// guest has been asked for it.
    ///
    /// # Errors
    /// [`ArtifactError`] with the first thing that is wrong.
    pub fn open_draft(path: &Path) -> Result<Self, ArtifactError> {
        Self::from_bytes(read_limited(path)?)
    }

    fn from_bytes(bytes: Vec<u8>) -> Result<Self, ArtifactError> {
        let sections = Sections::scan(&bytes)?;
        sections.check_world()?;
        let (id, metadata) = sections.identity(&bytes)?;
        let missing = |section| ArtifactError::NotPacked(format!("no {section}"));
        let descriptor: Option<Descriptor> = sections.json(&bytes, DESCRIPTOR_SECTION)?;
        let descriptor = descriptor.ok_or_else(|| missing(DESCRIPTOR_SECTION))?;
        let signature: Option<Signature> = sections.json(&bytes, SIGNATURE_SECTION)?;
        if let Some(signature) = &signature {
            let wrong = |error: SignatureError| ArtifactError::NotPacked(error.to_string());
            signature.check().map_err(wrong)?;
        }
        let golden = sections.custom.get(GOLDEN_SECTION).ok_or_else(|| missing(GOLDEN_SECTION))?;
        let golden = golden::parse(&bytes[golden.clone()]).map_err(ArtifactError::NotPacked)?;
        let assets = sections.assets();
        descriptor.check_assets(&bytes, &assets).map_err(ArtifactError::NotPacked)?;
        let digest = Digest::of(&bytes);
        let (imports, exports) = (sections.imports, sections.exports);
        Ok(Self {
            bytes,
            digest,
            id,
            metadata,
            descriptor,
            signature,
            golden,
            assets,
            imports,
            exports,
        })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What identifies these very bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The model and the version that it says it is.
    pub fn id(&self) -> &VersionId {
        &self.id
    }

    /// Description, licence and the like.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What `pack` wrote down about the artifact.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What the guest said of itself when it was packed; `preinit` asks it again.
    /// None in a draft.
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    /// Inputs with the outputs that they must give.
    pub fn golden(&self) -> &[GoldenExample] {
        &self.golden
    }

    /// Names and sizes in bytes of the assets.
    pub fn assets(&self) -> impl Iterator<Item = (&str, usize)> {
        self.assets.iter().map(|(name, range)| (name.as_str(), range.len()))
    }

    /// The bytes of an asset.
    pub fn asset(&self, name: &str) -> Option<&[u8]> {
        self.assets.get(name).map(|range| &self.bytes[range.clone()])
    }

    /// The interfaces that the component asks for.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// The interfaces that the component offers.
    pub fn exports(&self) -> &[String] {
        &self.exports
    }
}

/// What a component's top level holds; nested modules are skipped over.
#[derive(Default)]
struct Sections {
    custom: BTreeMap<String, Range<usize>>,
    imports: Vec<String>,
    exports: Vec<String>,
    name: Option<String>,
}

impl Sections {
    fn scan(bytes: &[u8]) -> Result<Self, ArtifactError> {
        check_magic(bytes)?;
        let malformed = |error: wasmparser::BinaryReaderError| {
            ArtifactError::Malformed(format!("{} at byte {}", error.message(), error.offset()))
        };
        let mut sections = Self::default();
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(malformed)? {
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(reader) if depth == 1 => {
                    for import in reader {
                        sections.imports.push(import.map_err(malformed)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(reader) if depth == 1 => {
                    for export in reader {
                        sections.exports.push(export.map_err(malformed)?.name.name.to_owned());
                    }
                }
                Payload::CustomSection(section) if depth == 1 => sections.custom(&section)?,
                _ => {}
            }
        }
        Ok(sections)
    }

    fn custom(
        &mut self,
        section: &wasmparser::CustomSectionReader<'_>,
    ) -> Result<(), ArtifactError> {
        if section.name() == "component-name" {
            let names =
                wasm_metadata::ComponentNames::from_bytes(section.data(), section.data_offset());
            let names = names.map_err(|error| ArtifactError::Malformed(error.to_string()))?;
            self.name = names.get_name().cloned();
        }
        let start = section.data_offset();
        let range = start..start + section.data().len();
        let name = section.name().to_owned();
        let before = self.custom.insert(name, range);
        if before.is_some() && section.name().starts_with("guesthouse:") {
            let what = format!("it has the section {:?} twice", section.name());
            return Err(ArtifactError::NotPacked(what));
        }
        Ok(())
    }

    fn check_world(&self) -> Result<(), ArtifactError> {
        for required in REQUIRED_EXPORTS {
            let wanted = format!("{required}@{CONTRACT_VERSION}");
            if !self.exports.contains(&wanted) {
                return Err(ArtifactError::WrongWorld(format!("it does not export `{wanted}`")));
            }
        }
        let foreign = self
            .imports
            .iter()
            .find(|import| !ALLOWED_IMPORTS.iter().any(|allowed| import.starts_with(allowed)));
        match foreign {
            None => Ok(()),
            Some(import) => {
                Err(ArtifactError::WrongWorld(format!("it imports `{}`", import.escape_debug())))
            }
        }
    }

    /// The model and version, and what else the component says of itself.
    fn identity(&self, bytes: &[u8]) -> Result<(VersionId, Metadata), ArtifactError> {
        let not_packed = |what: String| ArtifactError::NotPacked(what);
        let name = self.name.as_deref().unwrap_or_default();
        let name = name.parse().map_err(|error| {
            not_packed(format!("the component's name is {name:?}, but {error}"))
        })?;
        let version = self.text(bytes, "version").unwrap_or_default();
        let version = version.parse().map_err(|error| {
            not_packed(format!("the version {version:?} is not semver: {error}"))
        })?;
        let metadata = Metadata {
            description: self.text(bytes, "description"),
            licenses: self.text(bytes, "licenses"),
            authors: self.text(bytes, "authors"),
            source: self.text(bytes, "source"),
            revision: self.text(bytes, "revision"),
        };
        Ok((VersionId { name, version }, metadata))
    }

    fn json<T: for<'a> Deserialize<'a>>(
        &self,
        bytes: &[u8],
        section: &str,
    ) -> Result<Option<T>, ArtifactError> {
        let Some(range) = self.custom.get(section) else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes[range.clone()])
            .map(Some)
            .map_err(|error| ArtifactError::NotPacked(format!("{section}: {error}")))
    }

    fn assets(&self) -> BTreeMap<String, Range<usize>> {
        let asset = |(section, range): (&String, &Range<usize>)| {
            Some((section.strip_prefix(ASSET_SECTION_PREFIX)?.to_owned(), range.clone()))
        };
        self.custom.iter().filter_map(asset).collect()
    }

    fn text(&self, bytes: &[u8], section: &str) -> Option<String> {
        let range = self.custom.get(section)?;
        String::from_utf8(bytes[range.clone()].to_vec()).ok()
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
