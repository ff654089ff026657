//! What an author writes down about a version (`manifest.toml`), and what of it travels in the
//! artifact (the descriptor).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use semver::Version;
use serde::{Deserialize, Serialize};

use super::Digest;
use super::file::read_at_most;
use super::golden::Tolerances;
use crate::model::ModelName;

/// The longest name of an asset, in bytes.
const MAX_ASSET_NAME_LENGTH: usize = 128;

/// The largest manifest: it becomes the descriptor, which may not be larger.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// `manifest.toml`: paths are relative to its folder, unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model.
    pub name: ModelName,
    /// Its version by semver.
    pub version: Version,
    /// One line on what it does.
    pub description: Option<String>,
    /// SPDX licence expression of the model.
    pub licenses: Option<String>,
    /// Who made it.
    pub authors: Option<String>,
    /// URL of where it comes from.
    pub source: Option<String>,
    /// Revision of that source.
    pub revision: Option<String>,
    /// How it came to be, in words.
    pub provenance: Option<String>,
    /// The plugin whose component it uses; for build tools, the name of the model if left out.
    pub guest: Option<String>,
    /// Texts that the guest may ask for during `init`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Files that the guest may read during `init`, by the name it knows them by.
    #[serde(default)]
    pub assets: BTreeMap<String, PathBuf>,
    /// Inputs with the outputs they must give.
    pub golden: GoldenFile,
}

/// Where the golden examples are and how close is close enough.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenFile {
    /// A file of JSON lines, `{"inputs": {…}, "outputs": {…}}` each.
    pub file: PathBuf,
    /// By output.
    #[serde(default)]
    pub tolerance: Tolerances,
}

impl Manifest {
    /// Read a manifest.
    ///
    /// # Errors
    /// What is wrong, with its place in the file.
    pub fn open(path: &Path) -> Result<Self, String> {
        let bytes = read_at_most(path, MAX_MANIFEST_BYTES).map_err(|error| error.to_string())?;
        Self::parse(&bytes)
    }

    /// The manifest that a file of these bytes is.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_error| "it is not UTF-8")?;
        let manifest: Self = toml::from_str(text).map_err(|error| place(&error, text))?;
        if let Some(name) = manifest.assets.keys().find(|name| !is_asset_name(name)) {
            return Err(format!(
                "asset {name:?}: a name is 1 to {MAX_ASSET_NAME_LENGTH} letters, digits, `.`, `-` \
                 and `_`"
            ));
        }
        if let Some((output, _)) = manifest
            .golden
            .tolerance
            .iter()
            .find(|(_, limit)| !limit.is_finite() || limit.is_sign_negative())
        {
            return Err(format!("the tolerance of {output:?} is not a positive number"));
        }
        Ok(manifest)
    }
}

/// What is wrong and where, in one line.
fn place(error: &toml::de::Error, text: &str) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return error.message().to_owned();
    };
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

fn is_asset_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !name.is_empty() && name.len() <= MAX_ASSET_NAME_LENGTH && name.bytes().all(allowed)
}

/// The section that `pack` writes and the host reads: what WebAssembly's own metadata has no place
/// for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Version of this file format; 1.
    pub format: u32,
    /// How the version came to be, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// Texts that the guest may ask for during `init`.
    pub parameters: BTreeMap<String, String>,
    /// Digest (`sha256:…`) of every asset, so that a damaged or missing one is noticed.
    pub assets: BTreeMap<String, String>,
    /// How close the golden examples' outputs must be met.
    pub tolerances: Tolerances,
}

impl Descriptor {
    /// The format that this host writes and reads.
    pub const FORMAT: u32 = 1;

    /// Check that the assets are the ones that were packed.
    pub(super) fn check_assets(
        &self,
        bytes: &[u8],
        assets: &BTreeMap<String, Range<usize>>,
    ) -> Result<(), String> {
        if self.format != Self::FORMAT {
            return Err(format!("format {} is not known to this host", self.format));
        }
        if let Some(name) = assets.keys().find(|name| !is_asset_name(name)) {
            return Err(format!("{name:?} is not the name of an asset"));
        }
        for (name, digest) in &self.assets {
            let range = assets.get(name).ok_or_else(|| format!("asset {name:?} is missing"))?;
            if Digest::of(&bytes[range.clone()]).to_string() != *digest {
                return Err(format!("asset {name:?} is damaged"));
            }
        }
        match assets.keys().find(|name| !self.assets.contains_key(*name)) {
            None => Ok(()),
            Some(name) => Err(format!("asset {name:?} is not in the descriptor")),
        }
    }
}
