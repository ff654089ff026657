//! Artifacts as they came, by their digests: what is deployed does not depend on a folder that
//! somebody else looks after.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::shared::note_use;
use super::{Store, StoreError};
use crate::durable::{self, Step};
use guesthouse_artifact::{Artifact, ArtifactError, Digest, copy_limited, open_regular};

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
        let keep = || {
            let mut file = NamedTempFile::new_in(&self.artifacts)?;
            durable::before(Step::Write)?;
            artifact.copy_to(file.as_file_mut())?;
            durable::publish(file, &self.artifacts, &file_name(digest))
        };
        keep().map_err(StoreError::new("cannot keep an artifact"))
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

    /// The artifact in somebody else's file: the copy of it that is kept, or one that goes if
    /// nothing keeps it. Nothing is read from the file itself but to copy it, because others may
    /// write to it.
    ///
    /// # Errors
    /// [`ArtifactError`] for what is wrong with the file, [`StoreError`] if it cannot be copied.
    pub fn receive_file<E>(&self, path: &Path) -> Result<(Artifact, Option<NamedTempFile>), E>
    where
        E: From<ArtifactError> + From<StoreError>,
    {
        // As the file is when the server starts again.
        if let Ok(kept) = self.artifact(Digest::of_file(path)?) {
            return Ok((kept, None));
        }
        let mut file = self.receive_artifact()?;
        copy_limited(path, |piece| {
            let written = file.write_all(piece);
            Ok::<_, E>(written.map_err(StoreError::new("cannot receive an artifact"))?)
        })?;
        let artifact = Artifact::open(file.path())?;
        Ok((artifact, Some(file)))
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

    /// Whether any artifact is kept, whatever is in it.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub fn has_artifacts(&self) -> Result<bool, StoreError> {
        let any = || -> io::Result<bool> {
            for entry in fs::read_dir(&self.artifacts)? {
                if entry?.path().extension().is_some_and(|extension| extension == "wasm") {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        any().map_err(StoreError::new("cannot read the artifacts"))
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
