//! Deploying the versions of one model that are in the repository folder, when a client loads the model
//! by its name.

use std::io;
use std::path::{Path, PathBuf};

use super::folder_index::{FileStamp, list};
use super::state::Control;
use crate::registry::{LoadState, catch_panic};
use guesthouse_artifact::Artifact;
use guesthouse_model::ModelName;
use guesthouse_runtime::preinit::queue::CompilePriority;

impl Control {
    /// Deploy the versions of a model that the folder has by now and that were not there at the last
    /// look, or failed then. A folder that cannot be read counts as empty.
    ///
    /// # Errors
    /// The operating system gives no more threads.
    pub(super) fn deploy_from_folder(&self, model: &ModelName) -> io::Result<()> {
        let Some(folder) = self.folder.path.get() else { return Ok(()) };
        let stamps = match list(folder) {
            Ok(stamps) => stamps,
            Err(error) => {
                tracing::warn!(%error, ?folder, "cannot read the repository folder");
                return Ok(());
            }
        };
        let known = self.folder.files().clone();
        let is_wanted = |(path, stamp): &(PathBuf, FileStamp)| match known.get(path) {
            Some((was, id)) if was == stamp => id.as_ref().is_some_and(|id| {
                let is_failed =
                    || matches!(self.registry.load_state(id), Some(LoadState::Failed(_)));
                id.name == *model && is_failed()
            }),
            _ => holds_version_of(path, model),
        };
        let paths: Vec<_> = stamps.into_iter().filter(is_wanted).map(|(path, _)| path).collect();
        if paths.is_empty() {
            return Ok(());
        }
        let _files = self.hold_files();
        let mut found = self.read_files(paths)?.found;
        found.retain(|file| file.id.name == *model);
        self.deploy_found(found, CompilePriority::Operator)
    }
}

/// Whether the file is an artifact of the model. One that is no artifact may still be being written.
fn holds_version_of(path: &Path, model: &ModelName) -> bool {
    let artifact = catch_panic(|| Ok(Artifact::open(path)?));
    artifact.is_ok_and(|artifact| artifact.id().name == *model)
}
