//! `guesthouse pack`

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
    /// The version's `manifest.toml`; paths in it are relative to its folder.
    #[arg(long)]
    manifest: PathBuf,
    /// The component that was built of the guest.
    #[arg(long)]
    component: PathBuf,
    /// The artifact to write; an existing one is replaced.
    #[arg(long)]
    output: PathBuf,
}

/// The guest's `init` is run once to learn its signature, so an artifact that cannot start is
/// refused here and not at the first deploy.
pub(crate) fn run(arguments: &PackArguments) -> anyhow::Result<()> {
    let draft = artifact::pack_draft(&arguments.manifest, &arguments.component)
        .with_context(|| format!("failed to pack {}", arguments.component.display()))?;
    let output = &arguments.output;
    // Renaming would put a file in the place of a device; a folder would be noticed too late.
    if output.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        anyhow::bail!("failed to write {}: it is there and not a regular file", output.display());
    }
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // On the disk that the artifact goes to. The folder itself is only made for an artifact.
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
    // A temporary file is private; an artifact is there to be copied.
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
        println!("note: there can be no snapshot, so init will run in each instance: {reason}");
    }
    println!("packed {id} into {output} ({size} bytes, {digest})");
    Ok(())
}
