//! What callers of a version rely on, as a file to keep beside other sources and to compare with later.
//!
//! The form is canonical (RFC 8785) and descriptions are left out, so that two versions that are the same
//! to callers have the same bytes but for their numbers. Fields stay in their places, on which callers
//! rely as well.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::{ModelName, Signature, SignatureError, VersionId};

/// A signature, and whose it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignatureSnapshot {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: Version,
    /// What it takes and gives.
    pub signature: Signature,
}

/// A text is not a [`SignatureSnapshot`].
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is not the JSON of one.
    #[error("it is no signature snapshot: {0}")]
    Json(#[from] serde_json::Error),
    /// No guest could declare this.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl SignatureSnapshot {
    /// Of a version with this signature.
    pub fn new(id: &VersionId, signature: &Signature) -> Self {
        let mut signature = signature.clone();
        for fields in [&mut signature.inputs, &mut signature.outputs] {
            fields.iter_mut().for_each(|field| field.description.clear());
        }
        Self { model: id.name.clone(), version: id.version.clone(), signature }
    }

    /// Read it.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn parse(json: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot: Self = serde_json::from_slice(json)?;
        snapshot.signature.check()?;
        Ok(snapshot)
    }

    /// Write it, in the one way that there is.
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
    fn what_is_the_same_to_callers_has_the_same_bytes() {
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
        // Keys are in order, and nothing is spaced.
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
