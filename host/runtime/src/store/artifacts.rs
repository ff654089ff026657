//! The artifacts, by digest, so that deployed versions do not depend on a folder that others
//! control.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::shared_code::touch;
use super::{Store, StoreError};
use crate::durable::{self, FileOperation};
use guesthouse_artifact::{Artifact, ArtifactError, Digest, copy_limited, open_regular};

impl Store {
    /// Store an artifact, unless it is there already.
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
            durable::failpoint(FileOperation::Write)?;
            artifact.copy_to(file.as_file_mut())?;
            durable::publish(file, &self.artifacts, &file_name(digest))
        };
        keep().map_err(StoreError::new("cannot keep an artifact"))
    }

    /// Create a temporary file for an artifact that is being received; it is removed unless it is
    /// kept.
    ///
    /// # Errors
    /// The state folder cannot be written to.
    pub fn receive_artifact(&self) -> Result<NamedTempFile, StoreError> {
        let file = durable::failpoint(FileOperation::Write)
            .and_then(|()| NamedTempFile::new_in(&self.artifacts));
        file.map_err(StoreError::new("cannot receive an artifact"))
    }

    /// Open the artifact in a file that others may write to: the stored copy if there is one,
    /// otherwise a new temporary copy. The file itself is only read to copy it.
    ///
    /// # Errors
    /// [`ArtifactError`] if the file is not a valid artifact, [`StoreError`] if it cannot be
    /// copied.
    pub fn receive_file<E>(&self, path: &Path) -> Result<(Artifact, Option<NamedTempFile>), E>
    where
        E: From<ArtifactError> + From<StoreError>,
    {
        // The usual case when the server restarts.
        if let Ok(kept) = self.artifact(Digest::from_file(path)?) {
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

    /// Store an artifact that was received.
    ///
    /// # Errors
    /// The state folder cannot be written to.
    pub fn keep_received(&self, file: NamedTempFile, digest: Digest) -> Result<(), StoreError> {
        let kept = durable::publish(file, &self.artifacts, &file_name(digest));
        kept.map_err(StoreError::new("cannot keep an artifact"))
    }

    /// Open a stored artifact.
    ///
    /// # Errors
    /// The artifact is absent, or its content has changed.
    pub fn artifact(&self, digest: Digest) -> Result<Artifact, ArtifactError> {
        let path = self.artifact_path(digest);
        let artifact = Artifact::open(&path)?;
        if artifact.digest() != digest {
            let changed = io::Error::other("it is not what it was when it was deployed");
            return Err(ArtifactError::Read(changed));
        }
        touch(&open_regular(&path).map_err(ArtifactError::Read)?);
        Ok(artifact)
    }

    /// Whether any artifact is stored, valid or not.
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

    /// The size of a stored artifact, in bytes; `None` if it is absent.
    pub fn artifact_length(&self, digest: Digest) -> Option<u64> {
        self.artifact_path(digest).metadata().ok().map(|metadata| metadata.len())
    }

    fn has_artifact(&self, digest: Digest) -> bool {
        // A different content under this name means damage, which a new copy repairs.
        self.artifact_path(digest).exists() && self.artifact(digest).is_ok()
    }

    fn artifact_path(&self, digest: Digest) -> PathBuf {
        self.artifacts.join(file_name(digest))
    }
}

fn file_name(digest: Digest) -> String {
    format!("{}.wasm", digest.hex())
}
