//! The manifest of a version (`manifest.toml`), and the descriptor: the part of it that the
//! artifact contains.

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

/// A parsed `manifest.toml`. Paths are relative to its folder; unknown keys are errors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The name of the model.
    pub name: ModelName,
    /// The semantic version.
    pub version: Version,
    /// A description of one line.
    pub description: Option<String>,
    /// The SPDX licence expression.
    pub licenses: Option<String>,
    /// The authors.
    pub authors: Option<String>,
    /// The URL of the source.
    pub source: Option<String>,
    /// The revision of the source.
    pub revision: Option<String>,
    /// A description of how the model was made.
    pub provenance: Option<String>,
    /// For build tools: the plugin whose component is used; by default the one with the model's
    /// name.
    pub guest: Option<String>,
    /// Parameters that the guest may read during `init`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Files that the guest may read during `init`, by asset name.
    #[serde(default)]
    pub assets: BTreeMap<String, PathBuf>,
    /// The golden examples.
    pub golden: GoldenFile,
}

/// The golden examples and their tolerances.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenFile {
    /// A file of JSON lines, `{"inputs": {…}, "outputs": {…}}` each.
    pub file: PathBuf,
    /// The tolerance of each output.
    #[serde(default)]
    pub tolerance: Tolerances,
}

impl Manifest {
    /// Read and validate a manifest.
    ///
    /// # Errors
    /// A message with the line of the problem.
    pub fn open(path: &Path) -> Result<Self, String> {
        let bytes = read_at_most(path, MAX_MANIFEST_BYTES).map_err(|error| error.to_string())?;
        Self::parse(&bytes)
    }

    /// Parse and validate the bytes of a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_error| "it is not UTF-8")?;
        let manifest: Self =
            toml::from_str(text).map_err(|error| message_with_line(&error, text))?;
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

/// The message of an error with its line number, in one line.
fn message_with_line(error: &toml::de::Error, text: &str) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return error.message().to_owned();
    };
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

fn is_asset_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !name.is_empty() && name.len() <= MAX_ASSET_NAME_LENGTH && name.bytes().all(allowed)
}

/// Check that tolerances are finite and not negative.
fn check_tolerances(tolerances: &Tolerances) -> Result<(), String> {
    let is_wrong = |limit: f64| !limit.is_finite() || limit.is_sign_negative();
    match tolerances.iter().find(|(_, limit)| is_wrong(**limit)) {
        Some((output, _)) => Err(format!("the tolerance of {output:?} is not a positive number")),
        None => Ok(()),
    }
}

/// The descriptor section of an artifact: everything for which WebAssembly's metadata has no place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// The version of the artifact format.
    pub format: u32,
    /// A description of how the model was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// Parameters that the guest may read during `init`.
    pub parameters: BTreeMap<String, String>,
    /// Digest (`sha256:…`) of every asset, so that a damaged or missing one is noticed.
    pub assets: BTreeMap<String, String>,
    /// The tolerances of the golden examples.
    pub tolerances: Tolerances,
}

impl Descriptor {
    /// The version of the artifact format that this host reads and writes.
    pub const FORMAT: u32 = 1;

    /// Check the conditions that `pack` also checks in a manifest.
    pub(super) fn check(&self) -> Result<(), ArtifactError> {
        if self.format != Self::FORMAT {
            let what = format!("format {} is not known to this host", self.format);
            return Err(ArtifactError::NotPacked(what));
        }
        check_tolerances(&self.tolerances).map_err(ArtifactError::NotPacked)
    }

    /// Check that the assets are those that were packed.
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
    fn manifests_and_descriptors_reject_the_same_tolerances() {
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
