//! What an author writes down about a version (`manifest.toml`), and what of it travels in the
//! artifact (the descriptor).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use semver::Version;
use serde::{Deserialize, Serialize};

use super::ArtifactError;
use super::file::read_at_most;
use super::source::ReadAt;
use guesthouse_model::ModelName;
use guesthouse_model::record::Tolerances;

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
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_error| "it is not UTF-8")?;
        let manifest: Self = toml::from_str(text).map_err(|error| place(&error, text))?;
        if let Some(name) = manifest.assets.keys().find(|name| !is_asset_name(name)) {
            return Err(format!(
                "asset {name:?}: a name is 1 to {MAX_ASSET_NAME_LENGTH} letters, digits, `.`, `-` \
                 and `_`"
            ));
        }
        check_tolerances(&manifest.golden.tolerance)?;
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

/// A tolerance says how far outputs may be from others, which is at least not at all.
fn check_tolerances(tolerances: &Tolerances) -> Result<(), String> {
    let is_wrong = |limit: f64| !limit.is_finite() || limit.is_sign_negative();
    match tolerances.iter().find(|(_, limit)| is_wrong(**limit)) {
        Some((output, _)) => Err(format!("the tolerance of {output:?} is not a positive number")),
        None => Ok(()),
    }
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

    /// Check what `pack` checks of a manifest.
    pub(super) fn check(&self) -> Result<(), ArtifactError> {
        if self.format != Self::FORMAT {
            let what = format!("format {} is not known to this host", self.format);
            return Err(ArtifactError::NotPacked(what));
        }
        check_tolerances(&self.tolerances).map_err(ArtifactError::NotPacked)
    }

    /// Check that the assets are the ones that were packed.
    pub(super) fn check_assets(
        &self,
        file: &impl ReadAt,
        assets: &BTreeMap<String, Range<usize>>,
    ) -> Result<(), ArtifactError> {
        let wrong = |what: String| Err(ArtifactError::NotPacked(what));
        if let Some(name) = assets.keys().find(|name| !is_asset_name(name)) {
            return wrong(format!("{name:?} is not the name of an asset"));
        }
        for (name, digest) in &self.assets {
            let Some(range) = assets.get(name) else {
                return wrong(format!("asset {name:?} is missing"));
            };
            let is = file.digest(std::iter::once(range.clone())).map_err(ArtifactError::Read)?;
            if is.to_string() != *digest {
                return wrong(format!("asset {name:?} is damaged"));
            }
        }
        match assets.keys().find(|name| !self.assets.contains_key(*name)) {
            None => Ok(()),
            Some(name) => wrong(format!("asset {name:?} is not in the descriptor")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pack_refuses_of_tolerances_a_descriptor_may_not_have_either() {
        let descriptor = |tolerance: f64| Descriptor {
            format: Descriptor::FORMAT,
            provenance: None,
            parameters: BTreeMap::new(),
            assets: BTreeMap::new(),
            tolerances: Tolerances::from([("y".to_owned(), tolerance)]),
        };
        let manifest = |tolerance: &str| {
            let text = "name = \"x\"\nversion = \"1.0.0\"\n[golden]\nfile = \"golden.jsonl\"\n";
            Manifest::parse(format!("{text}tolerance = {{ y = {tolerance} }}").as_bytes())
        };
        for good in ["0.0", "0.5"] {
            assert!(manifest(good).is_ok());
            assert!(descriptor(good.parse().unwrap()).check().is_ok());
        }
        for bad in ["-0.5", "-0.0", "inf", "nan"] {
            assert!(manifest(bad).is_err(), "{bad}");
            let checked = descriptor(bad.parse().unwrap()).check();
            assert!(matches!(checked, Err(ArtifactError::NotPacked(_))), "{bad}");
        }
    }
}
