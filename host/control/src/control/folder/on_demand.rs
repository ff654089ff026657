//! Deploying what the repository folder has of one model, when somebody asks for it.

use std::io;
use std::path::{Path, PathBuf};

use super::{Read, Stamp, stamps};
use crate::control::Control;
use crate::registry::{Slot, guarded};
use guesthouse_artifact::Artifact;
use guesthouse_model::ModelName;
use guesthouse_runtime::preinit::queue::CompilePriority;

impl Control {
    /// Deploy what the folder has of a model by now and the last look has not found, or what failed then.
    /// A folder that cannot be read has nothing.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub(in crate::control) fn deploy_from_folder(&self, model: &ModelName) -> io::Result<()> {
        let Some(folder) = self.folder.path.get() else { return Ok(()) };
        let stamps = match stamps(folder) {
            Ok(stamps) => stamps,
            Err(error) => {
                tracing::warn!(%error, ?folder, "cannot read the repository folder");
                return Ok(());
            }
        };
        let known = self.folder.lock().clone();
        let is_wanted = |(path, stamp): &(PathBuf, Stamp)| match known.get(path) {
            Some((was, id)) if was == stamp => id.as_ref().is_some_and(|id| {
                let is_failed = || matches!(self.registry.slot(id), Some(Slot::Failed(_)));
                id.name == *model && is_failed()
            }),
            _ => holds_version_of(path, model),
        };
        let paths: Vec<_> = stamps.into_iter().filter(is_wanted).map(|(path, _)| path).collect();
        if paths.is_empty() {
            return Ok(());
        }
        let _loading = self.begin_loading();
        let Read { mut found, .. } = self.read_files(paths)?;
        found.retain(|file| file.id.name == *model);
        self.deploy_found(found, CompilePriority::Operator)
    }
}

/// Whether the file is an artifact of that model. One that is none may still be under way.
fn holds_version_of(path: &Path, model: &ModelName) -> bool {
    let artifact = guarded(|| Ok(Artifact::open(path)?));
    artifact.is_ok_and(|artifact| artifact.id().name == *model)
}
