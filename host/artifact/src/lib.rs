//! Artifacts: a `.wasm` file that contains a component and everything that belongs to it.
//!
//! This crate owns the file format: the component's metadata (name, version, description and
//! licence, in the form that WebAssembly tools read and write) and the `guesthouse:*` custom
//! sections. Reading walks the sections and runs nothing. It is bounded by [`MAX_ARTIFACT_BYTES`]
//! and the limits of the modules `sections` and `golden`, because it happens in the host's own
//! process. The component and the assets, which may be large, stay in the file and are read when
//! they are needed. Running the component is left to the runtime's `preinit`.

mod file;
mod golden;
mod manifest;
mod pack;
mod sections;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::iter;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use file::MAX_ARTIFACT_BYTES;
pub use file::{copy_limited, open_regular};
pub use golden::GoldenExample;
pub use guesthouse_model::record::Tolerances;
pub use manifest::{Descriptor, GoldenFile, Manifest};
pub use pack::{PackError, add_signature, pack_draft, pack_files};
pub use sections::{CONTRACT_VERSION, CONTRACT_VERSIONS};

use guesthouse_model::{Signature, SignatureError, VersionId};
use sections::Sections;
use source::{ArtifactSource, ReadAt as _};

const DESCRIPTOR_SECTION: &str = "guesthouse:descriptor";
const SIGNATURE_SECTION: &str = "guesthouse:signature";
const GOLDEN_SECTION: &str = "guesthouse:golden";
const ASSET_SECTION_PREFIX: &str = "guesthouse:asset/";

/// The name of the host's arithmetic among imports, without its version.
const ARITHMETIC_IMPORT: &str = "guesthouse:model/arithmetic@";

/// The SHA-256 of an artifact's bytes, written `sha256:…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// The text is not a valid [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64 hexadecimal digits")]
pub struct DigestError;

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").ok_or(DigestError)?;
        // Used to decode 32 bytes of hexadecimal.
        let hash = blake3::Hash::from_hex(hex).map_err(|_error| DigestError)?;
        Ok(Self(hash.into()))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl Digest {
    /// Compute the digest of bytes.
    pub fn from_content(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Compute the digest of a regular file that is no larger than an artifact may be.
    ///
    /// # Errors
    /// [`ArtifactError::Read`] or [`ArtifactError::TooLarge`].
    pub fn from_file(path: &Path) -> Result<Self, ArtifactError> {
        let mut hasher = Sha256::new();
        copy_limited(path, |piece| {
            hasher.update(piece);
            Ok::<_, ArtifactError>(())
        })?;
        Ok(Self(hasher.finalize().into()))
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

/// The component's metadata except for name and version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the component's metadata, by their names")]
pub struct ArtifactMetadata {
    pub description: Option<String>,
    pub licenses: Option<String>,
    pub authors: Option<String>,
    pub source: Option<String>,
    pub revision: Option<String>,
}

/// Why a file is not an artifact that this host can serve.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[source] io::Error),
    /// The file is larger than [`MAX_ARTIFACT_BYTES`].
    #[error("it is larger than {} MiB", MAX_ARTIFACT_BYTES >> 20)]
    TooLarge,
    /// The file is not WebAssembly.
    #[error("it is not a WebAssembly file")]
    NotWasm,
    /// The file is a core module, which has no typed interface.
    #[error("it is a core WebAssembly module, not a component")]
    CoreModule,
    /// The file is native code, such as a `.cwasm` file, which the host only loads if it has
    /// compiled it itself.
    #[error("it is precompiled native code, which is never loaded from outside")]
    Precompiled,
    /// The file starts like a component but is malformed or truncated.
    #[error("it is not a whole component: {0}")]
    Malformed(String),
    /// The file exceeds a limit of the format.
    #[error("it is over a limit: {0}")]
    OverLimit(String),
    /// The component does not implement the guest world.
    #[error("it is a component of another world: {0}")]
    WrongWorld(String),
    /// The guest was built for another version of the contract.
    #[error(
        "it was made for the contract guesthouse:model@{version}, and this release serves those up to \
         guesthouse:model@{CONTRACT_VERSION} from guesthouse:model@{oldest} on: upgrade this host if the artifact \
         is newer; otherwise build and pack it again, and deploy it as a new version, or under the same \
         number after undeploying this one",
        oldest = CONTRACT_VERSIONS[0]
    )]
    OtherContract {
        /// The version of the contract that the guest exports.
        version: String,
    },
    /// The guest is not a packed artifact: a section that `guesthouse pack` adds is missing or
    /// invalid.
    #[error("it is not a packed artifact: {0}")]
    NotPacked(String),
}

/// An artifact that has been read and validated, but not run.
pub struct Artifact {
    source: ArtifactSource,
    digest: Digest,
    /// The ranges of the component in the file, without its custom sections.
    code: Vec<Range<usize>>,
    id: VersionId,
    metadata: ArtifactMetadata,
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
    /// Open and validate an artifact. Large parts of the file are read later, so it must not be
    /// modified while the artifact is in use.
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

    /// Like [`Artifact::open`], but without requiring the signature, which `pack` adds last.
    ///
    /// # Errors
    /// [`ArtifactError`] with the first thing that is wrong.
    pub fn open_draft(path: &Path) -> Result<Self, ArtifactError> {
        Self::read(ArtifactSource::open(path)?)
    }

    /// Read an artifact that is in memory, such as one that was just downloaded.
    ///
    /// # Errors
    /// [`ArtifactError`] with the first thing that is wrong.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ArtifactError> {
        if bytes.len() as u64 > MAX_ARTIFACT_BYTES {
            return Err(ArtifactError::TooLarge);
        }
        Self::read(ArtifactSource::Memory(bytes))
    }

    fn read(source: ArtifactSource) -> Result<Self, ArtifactError> {
        let sections = Sections::scan(&source)?;
        sections.check_world()?;
        let (id, metadata) = sections.identity(&source)?;
        let missing = |section| ArtifactError::NotPacked(format!("no {section}"));
        let descriptor: Option<Descriptor> = sections.json(&source, DESCRIPTOR_SECTION)?;
        let descriptor = descriptor.ok_or_else(|| missing(DESCRIPTOR_SECTION))?;
        let signature: Option<Signature> = sections.json(&source, SIGNATURE_SECTION)?;
        if let Some(signature) = &signature {
            let wrong = |error: SignatureError| ArtifactError::NotPacked(error.to_string());
            signature.check().map_err(wrong)?;
        }
        let golden = sections.custom.get(GOLDEN_SECTION).ok_or_else(|| missing(GOLDEN_SECTION))?;
        let golden = source.bytes(golden.clone()).map_err(ArtifactError::Read)?;
        let golden = golden::parse(&golden).map_err(ArtifactError::NotPacked)?;
        let assets = sections.assets();
        descriptor.check()?;
        descriptor.check_assets(&source, &assets)?;
        let digest = source.digest(iter::once(0..source.length())).map_err(ArtifactError::Read)?;
        let (imports, exports) = (sections.imports, sections.exports);
        Ok(Self {
            source,
            digest,
            code: sections.code,
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

    /// Whether the guest imports the host's arithmetic.
    pub fn imports_arithmetic(&self) -> bool {
        self.imports.iter().any(|import| import.starts_with(ARITHMETIC_IMPORT))
    }

    /// The size of the artifact, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.source.length()
    }

    /// Write the whole artifact.
    ///
    /// # Errors
    /// The artifact cannot be read, or `to` cannot be written.
    pub fn copy_to(&self, to: &mut impl io::Write) -> io::Result<()> {
        self.source.copy_to(to)
    }

    /// The digest of the artifact's bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The component without its custom sections: the part that is compiled, and that versions of
    /// one guest have in common. Custom sections of nested modules and components are kept.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn component(&self) -> io::Result<Vec<u8>> {
        let parts = self.code.iter().map(|range| self.source.bytes(range.clone()));
        Ok(parts.collect::<io::Result<Vec<_>>>()?.concat())
    }

    /// The digest of [`Artifact::component`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn component_digest(&self) -> io::Result<Digest> {
        self.source.digest(self.code.iter().cloned())
    }

    /// The model and the version.
    pub fn id(&self) -> &VersionId {
        &self.id
    }

    /// The metadata, such as description and licence.
    pub fn metadata(&self) -> &ArtifactMetadata {
        &self.metadata
    }

    /// The descriptor that `pack` has written.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The signature that the guest declared when it was packed. Pre-initialisation checks it
    /// again.
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    /// The golden examples.
    pub fn golden(&self) -> &[GoldenExample] {
        &self.golden
    }

    /// The names of the assets and their sizes, in bytes.
    pub fn assets(&self) -> impl Iterator<Item = (&str, usize)> {
        self.assets.iter().map(|(name, range)| (name.as_str(), range.len()))
    }

    /// The size of an asset, in bytes; `None` if there is no such asset.
    pub fn asset_bytes(&self, name: &str) -> Option<usize> {
        self.assets.get(name).map(Range::len)
    }

    /// Read at most `length` bytes of an asset from `offset` on; empty at its end.
    ///
    /// # Errors
    /// The file cannot be read, or there is no such asset.
    pub fn read_asset(&self, name: &str, offset: usize, length: usize) -> io::Result<Vec<u8>> {
        let asset = self.assets.get(name).ok_or(io::ErrorKind::NotFound)?;
        let start = asset.start.saturating_add(offset).min(asset.end);
        let end = start.saturating_add(length).min(asset.end);
        self.source.bytes(start..end)
    }

    /// The interfaces that the component imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// The interfaces that the component exports.
    pub fn exports(&self) -> &[String] {
        &self.exports
    }
}
