//! Artifacts: one `.wasm` file that holds a component and everything that travels with it.
//!
//! Owns the file format: the component's own metadata (name, version, description, licence, as
//! WebAssembly tools write and read them) and the `guesthouse:*` custom sections. Reading walks
//! the sections and runs nothing; it is bounded by [`MAX_ARTIFACT_BYTES`] and the limits of
//! `sections` and `golden`, because it happens in the host's own process. The component and the
//! assets, which may be large, stay in the file and are read when they are needed. What the component does
//! when it runs is left to `preinit`.

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
pub use manifest::{Descriptor, Manifest};
pub use pack::{PackError, add_signature, pack_draft};
pub use sections::CONTRACT_VERSION;

use guesthouse_model::{Signature, SignatureError, VersionId};
use sections::Sections;
use source::{ReadAt as _, Source};

const DESCRIPTOR_SECTION: &str = "guesthouse:descriptor";
const SIGNATURE_SECTION: &str = "guesthouse:signature";
const GOLDEN_SECTION: &str = "guesthouse:golden";
const ASSET_SECTION_PREFIX: &str = "guesthouse:asset/";

/// The SHA-256 of an artifact's bytes, written `sha256:…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text is not a [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64 hexadecimal digits")]
pub struct DigestError;

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").ok_or(DigestError)?;
        // Any 32 bytes in hexadecimal, whatever they are a hash of.
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
    /// The digest of these bytes.
    pub fn from_content(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of a regular file that is no larger than an artifact.
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

/// What the component's own metadata says, besides name and version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the component's metadata, by their names")]
pub struct ArtifactMetadata {
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
    /// It has more of something than any guest needs.
    #[error("it is over a limit: {0}")]
    OverLimit(String),
    /// It is a component, but not a guest.
    #[error("it is a component of another world: {0}")]
    WrongWorld(String),
    /// It is a guest of a release with another contract.
    #[error(
        "it was made for the contract guesthouse:model@{version}, and this release has \
         guesthouse:model@{CONTRACT_VERSION}: build and pack it again with this release, and deploy it as \
         a new version, or under the same number after undeploying this one"
    )]
    OtherContract {
        /// The contract's version that it says.
        version: String,
    },
    /// It is a guest, but not packed: what `guesthouse pack` adds is missing or damaged.
    #[error("it is not a packed artifact: {0}")]
    NotPacked(String),
}

/// One artifact, read and checked, but not run.
pub struct Artifact {
    source: Source,
    digest: Digest,
    /// Where in the file the component is, without the sections around it.
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
    /// Check the artifact in a file, of which large parts are read later: nobody should change it
    /// while the artifact is in use.
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
        Self::read(Source::open(path)?)
    }

    /// Read an artifact that is in memory, such as one that was just downloaded.
    ///
    /// # Errors
    /// [`ArtifactError`] with the first thing that is wrong.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ArtifactError> {
        if bytes.len() as u64 > MAX_ARTIFACT_BYTES {
            return Err(ArtifactError::TooLarge);
        }
        Self::read(Source::Memory(bytes))
    }

    fn read(source: Source) -> Result<Self, ArtifactError> {
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

    /// The size of the file, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.source.length()
    }

    /// Write the whole file.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn copy_to(&self, to: &mut impl io::Write) -> io::Result<()> {
        self.source.copy_to(to)
    }

    /// What identifies these very bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The component without its own custom sections: what versions of one guest have in common,
    /// and all that is compiled. Sections of what is nested in it stay.
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

    /// The model and the version that it says it is.
    pub fn id(&self) -> &VersionId {
        &self.id
    }

    /// Description, licence and the like.
    pub fn metadata(&self) -> &ArtifactMetadata {
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

    /// The size of an asset, in bytes.
    pub fn asset_bytes(&self, name: &str) -> Option<usize> {
        self.assets.get(name).map(Range::len)
    }

    /// At most `length` bytes of an asset from `offset` on; none at its end.
    ///
    /// # Errors
    /// The file cannot be read, or there is no such asset.
    pub fn read_asset(&self, name: &str, offset: usize, length: usize) -> io::Result<Vec<u8>> {
        let asset = self.assets.get(name).ok_or(io::ErrorKind::NotFound)?;
        let start = asset.start.saturating_add(offset).min(asset.end);
        let end = start.saturating_add(length).min(asset.end);
        self.source.bytes(start..end)
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
