//! Packs a component and the files of a manifest into an artifact.
//!
//! Packing takes two steps, because the guest declares the signature: first a draft without it is
//! written, then the signature is added that the guest's `init` returned when it ran on the draft.

use std::io;
use std::path::{Path, PathBuf};

use wasm_encoder::{CustomSection, Section as _};
use wasm_metadata::{AddMetadata, AddMetadataField};

use super::file::{MAX_ARTIFACT_BYTES, read_at_most, read_limited};
use super::manifest::{Descriptor, Manifest};
use super::{
    ASSET_SECTION_PREFIX, ArtifactError, DESCRIPTOR_SECTION, Digest, GOLDEN_SECTION,
    SIGNATURE_SECTION, Sections, golden,
};
use guesthouse_model::Signature;

/// Why an artifact cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The manifest cannot be used.
    #[error("manifest: {0}")]
    Manifest(String),
    /// A file that the manifest names cannot be read.
    #[error("cannot read {path:?}, which the manifest names")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The artifact would be too large.
    #[error("the artifact would be larger than {} MiB", MAX_ARTIFACT_BYTES >> 20)]
    TooLarge,
    /// The component cannot be used.
    #[error("component: {0}")]
    Component(#[from] ArtifactError),
}

/// Pack everything except the signature.
///
/// # Errors
/// [`PackError`] with the first thing that is wrong.
pub fn pack_draft(manifest_path: &Path, component_path: &Path) -> Result<Vec<u8>, PackError> {
    let manifest = Manifest::open(manifest_path).map_err(PackError::Manifest)?;
    let component = read_limited(component_path)?;
    let folder = manifest_path.parent().unwrap_or(Path::new("."));
    pack_files(manifest, folder, &component)
}

/// Pack everything except the signature. The paths of the manifest are relative to a folder.
///
/// # Errors
/// [`PackError`] with the first thing that is wrong.
pub fn pack_files(
    manifest: Manifest,
    folder: &Path,
    component: &[u8],
) -> Result<Vec<u8>, PackError> {
    let sections = Sections::scan(component)?;
    sections.check_world()?;
    if sections.is_packed() {
        let what = "it has been packed before; give the component that was built".to_owned();
        return Err(PackError::Manifest(what));
    }
    let read = |path: &PathBuf| {
        let path = folder.join(path);
        read_at_most(&path, MAX_ARTIFACT_BYTES).map_err(|source| PackError::File { path, source })
    };

    let mut artifact = metadata(&manifest)?
        .to_wasm(component)
        .map_err(|error| ArtifactError::Malformed(error.to_string()))?;
    let mut digests = std::collections::BTreeMap::new();
    for (name, path) in &manifest.assets {
        let bytes = read(path)?;
        if (artifact.len() + bytes.len()) as u64 > MAX_ARTIFACT_BYTES {
            return Err(PackError::TooLarge);
        }
        digests.insert(name.clone(), Digest::from_content(&bytes).to_string());
        append(&mut artifact, &format!("{ASSET_SECTION_PREFIX}{name}"), &bytes);
    }
    let examples = read(&manifest.golden.file)?;
    golden::parse(&examples).map_err(PackError::Manifest)?;
    append(&mut artifact, GOLDEN_SECTION, &examples);
    let descriptor = Descriptor {
        format: Descriptor::FORMAT,
        provenance: manifest.provenance,
        parameters: manifest.parameters,
        assets: digests,
        tolerances: manifest.golden.tolerance,
    };
    append_json(&mut artifact, DESCRIPTOR_SECTION, &descriptor);
    Ok(artifact)
}

/// Complete a draft with the signature that its guest has declared.
pub fn add_signature(mut draft: Vec<u8>, signature: &Signature) -> Vec<u8> {
    append_json(&mut draft, SIGNATURE_SECTION, signature);
    draft
}

fn metadata(manifest: &Manifest) -> Result<AddMetadata, PackError> {
    let mut metadata = AddMetadata::default();
    metadata.name = AddMetadataField::Set(manifest.name.to_string());
    metadata.version =
        AddMetadataField::Set(wasm_metadata::Version::new(manifest.version.to_string()));
    metadata.description = keep_or(manifest.description.as_deref(), "description", text)?;
    metadata.authors = keep_or(manifest.authors.as_deref(), "authors", text)?;
    metadata.licenses = keep_or(manifest.licenses.as_deref(), "licenses", |licenses| {
        licenses.parse().map_err(|error: anyhow::Error| error.to_string())
    })?;
    metadata.source = keep_or(manifest.source.as_deref(), "source", |source| {
        source.parse().map_err(|error: anyhow::Error| error.to_string())
    })?;
    metadata.revision = keep_or(manifest.revision.as_deref(), "revision", text)?;
    Ok(metadata)
}

/// Set a metadata field, or keep the component's own if the manifest omits it.
fn keep_or<T: std::fmt::Debug + Clone>(
    value: Option<&str>,
    key: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<AddMetadataField<T>, PackError> {
    let Some(value) = value else {
        return Ok(AddMetadataField::Keep);
    };
    let parsed = parse(value).map_err(|error| PackError::Manifest(format!("{key}: {error}")))?;
    Ok(AddMetadataField::Set(parsed))
}

fn text<T: std::str::FromStr<Err = anyhow::Error>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: anyhow::Error| error.to_string())
}

fn append_json(artifact: &mut Vec<u8>, name: &str, value: &impl serde::Serialize) {
    let json = serde_json::to_vec(value).expect("these types have no maps with other keys");
    append(artifact, name, &json);
}

fn append(artifact: &mut Vec<u8>, name: &str, data: &[u8]) {
    CustomSection { name: name.into(), data: data.into() }.append_to(artifact);
}
