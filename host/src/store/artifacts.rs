//! Artifacts as they came, by their digests: what is deployed does not depend on a folder that
//! somebody else looks after.

use std::io;
use std::path::PathBuf;

use tempfile::NamedTempFile;

use super::shared::note_use;
use super::{Store, StoreError};
use crate::artifact::{Artifact, ArtifactError, Digest, open_regular};
use crate::durable::{self, Step};

impl Store {
    /// Keep an artifact, unless it is there already.
    ///
    /// # Errors
    /// The state folder cannot be written to.
    pub fn keep_artifact(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let digest = artifact.digest();
        if self.has_artifact(digest) {
            return Ok(());
        }
        let keep = durable::write_file(&self.artifacts, &file_name(digest), artifact.bytes());
        keep.map_err(StoreError::new("cannot keep an artifact"))
    }

    /// A file for an artifact that is being received; it goes if nothing keeps it.
    ///
    /// # Errors
    /// The state folder cannot be written to.
    pub fn receive_artifact(&self) -> Result<NamedTempFile, StoreError> {
        let file =
            durable::before(Step::Write).and_then(|()| NamedTempFile::new_in(&self.artifacts));
        file.map_err(StoreError::new("cannot receive an artifact"))
    }

    /// Keep an artifact that was received.
    ///
    /// # Errors
    /// The state folder cannot be written to.
    pub fn keep_received(&self, file: NamedTempFile, digest: Digest) -> Result<(), StoreError> {
        let kept = durable::publish(file, &self.artifacts, &file_name(digest));
        kept.map_err(StoreError::new("cannot keep an artifact"))
    }

    /// Read an artifact that is kept.
    ///
    /// # Errors
    /// It is not there, or it is not what it was when it came.
    pub fn artifact(&self, digest: Digest) -> Result<Artifact, ArtifactError> {
        let path = self.artifact_path(digest);
        let artifact = Artifact::open(&path)?;
        if artifact.digest() != digest {
            let changed = io::Error::other("it is not what it was when it was deployed");
            return Err(ArtifactError::Read(changed));
        }
        note_use(&open_regular(&path).map_err(ArtifactError::Read)?);
        Ok(artifact)
    }

    /// How long an artifact that is kept is, in bytes; none if it is not there.
    pub fn artifact_length(&self, digest: Digest) -> Option<u64> {
        self.artifact_path(digest).metadata().ok().map(|metadata| metadata.len())
    }

    fn has_artifact(&self, digest: Digest) -> bool {
        // Another content under this name is damage, which a new copy repairs.
        self.artifact_path(digest).exists() && self.artifact(digest).is_ok()
    }

    fn artifact_path(&self, digest: Digest) -> PathBuf {
        self.artifacts.join(file_name(digest))
    }
}

fn file_name(digest: Digest) -> String {
    format!("{}.wasm", digest.hex())
}
