//! `guesthouse pack`: makes an artifact.

mod difference;
mod example;
mod external_data;
mod manifest;
mod onnx;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use guesthouse_artifact::{self as artifact, Artifact};
use guesthouse_model::terminal;
use guesthouse_runtime::preinit::{
    self, ChildProgram, InstanceStart, PreinitGoal, PreinitHooks, PreinitLimits, PreinitReport,
};
use guesthouse_server::observe::logs;

use self::onnx::OnnxArguments;

#[derive(Debug, clap::Args)]
pub(crate) struct PackArguments {
    /// The `manifest.toml` of the version; for an ONNX file, a manifest of its fields, preprocessing
    /// and postprocessing. Its paths are relative to its folder.
    #[arg(long, required_unless_present = "onnx")]
    manifest: Option<PathBuf>,
    /// The component, built from the guest. For an ONNX file, this program has one.
    #[arg(long, required_unless_present = "onnx")]
    component: Option<PathBuf>,
    #[command(flatten)]
    onnx: OnnxArguments,
    /// The artifact to write. An existing one is replaced.
    #[arg(long, short)]
    output: PathBuf,
}

/// An artifact with its signature, and what `init` took.
struct Packed {
    bytes: Vec<u8>,
    report: PreinitReport,
}

/// An artifact in a temporary file.
struct Draft {
    bytes: Vec<u8>,
    file: tempfile::NamedTempFile,
}

impl Draft {
    /// Write it to a file in this folder.
    fn new(bytes: Vec<u8>, folder: &Path) -> anyhow::Result<Self> {
        let file = tempfile::NamedTempFile::new_in(folder);
        let mut file = file.with_context(|| format!("failed to write to {}", folder.display()))?;
        file.write_all(&bytes).context("failed to write the draft")?;
        Ok(Self { bytes, file })
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    /// Run the guest's `init` once to obtain its signature, so that an artifact that cannot start is
    /// rejected here and not at its first deployment.
    fn declare(&self) -> anyhow::Result<PreinitReport> {
        let watch = PreinitHooks {
            program: ChildProgram::Current,
            is_serving: &|| false,
            must_yield: &|| false,
            environment: &logs::child_environment,
        };
        let limits = PreinitLimits::default();
        Ok(preinit::run(self.path(), PreinitGoal::Signature, &limits, &watch)?)
    }
}

pub(crate) fn run(arguments: &PackArguments) -> anyhow::Result<()> {
    let output = &arguments.output;
    // Renaming would replace a device by a file, and would fail for a folder only at the end.
    if output.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        anyhow::bail!("failed to write {}: it is there and not a regular file", output.display());
    }
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // On the same file system as the output. The folder itself is only created for a complete artifact.
    let existing = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let Packed { bytes, report } = match &arguments.onnx.onnx {
        Some(file) => onnx::pack(arguments, file)?,
        None => pack_manifest(arguments, existing)?,
    };
    let file = Draft::new(bytes, existing)?.file;
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
    let (id, digest, size) = (artifact.id(), artifact.digest(), artifact.size_bytes());
    let output = terminal::printable(&output.to_string_lossy());
    if let InstanceStart::Init(reason) = &report.start {
        let reason = terminal::printable(reason);
        println!("note: no snapshot can be taken, so init will run in each instance: {reason}");
    }
    println!("packed {id} into {output} ({size} bytes, {digest})");
    Ok(())
}

/// Pack a component with the files of a manifest.
fn pack_manifest(arguments: &PackArguments, folder: &Path) -> anyhow::Result<Packed> {
    let (Some(manifest), Some(component)) = (&arguments.manifest, &arguments.component) else {
        anyhow::bail!("--manifest and --component are needed, or --onnx")
    };
    let what = || format!("failed to pack {}", component.display());
    let draft = artifact::pack_draft(manifest, component).with_context(what)?;
    let draft = Draft::new(draft, folder)?;
    let report = draft.declare().with_context(what)?;
    let bytes = artifact::add_signature(draft.bytes, &report.signature);
    Ok(Packed { bytes, report })
}
