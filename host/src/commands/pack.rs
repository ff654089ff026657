//! `guesthouse pack`

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use guesthouse::artifact::{self, Artifact};
use guesthouse::preinit::{self, Goal, PreinitLimits};
use guesthouse::terminal;

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
    let draft = artifact::draft(&arguments.manifest, &arguments.component)
        .with_context(|| format!("failed to pack {}", arguments.component.display()))?;
    let folder = arguments.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)
        .with_context(|| format!("failed to make {}", folder.display()))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).context("failed to make a file")?;
    file.write_all(&draft).context("failed to write the draft")?;
    file.flush().context("failed to write the draft")?;

    let report = preinit::run(file.path(), Goal::Signature, &PreinitLimits::default())
        .with_context(|| format!("failed to pack {}", arguments.component.display()))?;
    let finished = artifact::add_signature(draft, &report.signature);
    std::fs::write(file.path(), &finished).context("failed to write the artifact")?;
    let artifact = Artifact::open(file.path()).context("failed to read the artifact back")?;
    file.as_file().sync_all().context("failed to write the artifact")?;
    // A temporary file is private; an artifact is there to be copied.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).context("failed to write the artifact")?;
    file.persist(&arguments.output)
        .with_context(|| format!("failed to write {}", arguments.output.display()))?;
    let (id, digest, size) = (artifact.id(), artifact.digest(), finished.len());
    let output = terminal::printable(&arguments.output.to_string_lossy());
    println!("packed {id} into {output} ({size} bytes, {digest})");
    Ok(())
}
