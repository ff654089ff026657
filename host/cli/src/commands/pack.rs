//! `guesthouse pack`: makes an artifact.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use guesthouse_artifact::{self as artifact, Artifact};
use guesthouse_model::terminal;
use guesthouse_runtime::preinit::{
    self, ChildProgram, InstanceStart, PreinitGoal, PreinitHooks, PreinitLimits,
};
use guesthouse_server::observe::logs;

#[derive(Debug, clap::Args)]
pub(crate) struct PackArguments {
    /// The `manifest.toml` of the version. Its paths are relative to its folder.
    #[arg(long)]
    manifest: PathBuf,
    /// The component, built from the guest.
    #[arg(long)]
    component: PathBuf,
    /// The artifact to write. An existing one is replaced.
    #[arg(long)]
    output: PathBuf,
}

/// Runs the guest's `init` once to obtain its signature, so that an artifact that cannot start is rejected
/// here and not at its first deployment.
pub(crate) fn run(arguments: &PackArguments) -> anyhow::Result<()> {
    let draft = artifact::pack_draft(&arguments.manifest, &arguments.component)
        .with_context(|| format!("failed to pack {}", arguments.component.display()))?;
    let output = &arguments.output;
    // Renaming would replace a device by a file, and would fail for a folder only at the end.
    if output.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        anyhow::bail!("failed to write {}: it is there and not a regular file", output.display());
    }
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // On the same file system as the output. The folder itself is only created for a complete artifact.
    let existing = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(existing);
    let mut file = file.with_context(|| format!("failed to write to {}", existing.display()))?;
    file.write_all(&draft).context("failed to write the draft")?;

    let watch = PreinitHooks {
        program: ChildProgram::Current,
        is_serving: &|| false,
        must_yield: &|| false,
        environment: &logs::child_environment,
    };
    let report =
        preinit::run(file.path(), PreinitGoal::Signature, &PreinitLimits::default(), &watch)
            .with_context(|| format!("failed to pack {}", arguments.component.display()))?;
    let finished = artifact::add_signature(draft, &report.signature);
    std::fs::write(file.path(), &finished).context("failed to write the artifact")?;
    let artifact = Artifact::open(file.path()).context("failed to read the artifact back")?;
    file.as_file().sync_all().context("failed to write the artifact")?;
    // A temporary file is private; an artifact may be read by everybody.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).context("failed to write the artifact")?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("failed to make {}", folder.display()))?;
    file.persist(output).with_context(|| format!("failed to write {}", output.display()))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .context("failed to write the folder")?;
    let (id, digest, size) = (artifact.id(), artifact.digest(), finished.len());
    let output = terminal::printable(&output.to_string_lossy());
    if let InstanceStart::Init(reason) = &report.start {
        let reason = terminal::printable(reason);
        println!("note: no snapshot can be taken, so init will run in each instance: {reason}");
    }
    println!("packed {id} into {output} ({size} bytes, {digest})");
    Ok(())
}
