//! Signature snapshots: the contract of a version as a file, to be committed and compared with
//! later versions.
//!
//! The form is canonical JSON (RFC 8785) without descriptions, so equal contracts have equal bytes
//! except for the version number. Fields keep their positions, on which callers rely as well.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::{ModelName, Signature, SignatureError, VersionId};

/// The signature of a version, without descriptions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignatureSnapshot {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: Version,
    /// The inputs and outputs.
    pub signature: Signature,
}

/// The text is not a valid [`SignatureSnapshot`].
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is not the JSON of a snapshot.
    #[error("it is no signature snapshot: {0}")]
    Json(#[from] serde_json::Error),
    /// The signature is not valid.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl SignatureSnapshot {
    /// Create the snapshot of a version with this signature.
    pub fn new(id: &VersionId, signature: &Signature) -> Self {
        let mut signature = signature.clone();
        for fields in [&mut signature.inputs, &mut signature.outputs] {
            fields.iter_mut().for_each(|field| field.description.clear());
        }
        Self { model: id.name.clone(), version: id.version.clone(), signature }
    }

    /// Parse a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn parse(json: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot: Self = serde_json::from_slice(json)?;
        snapshot.signature.check()?;
        Ok(snapshot)
    }

    /// The canonical JSON.
    pub fn canonical(&self) -> String {
        serde_json_canonicalizer::to_string(self)
            .expect("a snapshot has no numbers but finite ones")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::signature;
    use super::*;

    #[test]
    fn equal_contracts_have_equal_bytes() {
        let id = VersionId { name: "toxicity".parse().unwrap(), version: Version::new(1, 0, 0) };
        let canonical = SignatureSnapshot::new(&id, &signature()).canonical();
        let mut other = signature();
        other.inputs[0].description = "in other words".to_owned();
        assert_eq!(SignatureSnapshot::new(&id, &other).canonical(), canonical);
        let mut moved = other.clone();
        moved.inputs.reverse();
        assert_ne!(SignatureSnapshot::new(&id, &moved).canonical(), canonical);
        other.max_batch_size += 1;
        assert_ne!(SignatureSnapshot::new(&id, &other).canonical(), canonical);
        // Keys are sorted, and there is no white space.
        assert!(
            canonical.starts_with(r#"{"model":"toxicity","signature":{"inputs":[{"#),
            "{canonical}"
        );
        let parsed = SignatureSnapshot::parse(canonical.as_bytes()).unwrap();
        assert_eq!(parsed.canonical(), canonical);
        assert!(SignatureSnapshot::parse(b"{}").is_err());
        let nobody = canonical.replace("\"max_batch_size\":8", "\"max_batch_size\":0");
        assert!(SignatureSnapshot::parse(nobody.as_bytes()).is_err());
    }
}
