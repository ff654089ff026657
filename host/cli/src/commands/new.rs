//! `guesthouse new`: writes a folder with a model that builds, passes its tests and is packed as it is.
//!
//! The templates, the SDK and the contract are a part of the program. The folder appears under its name
//! only when it is complete.

mod embedded;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use guesthouse_model::ModelName;
use guesthouse_model::terminal::printable;

#[derive(Debug, clap::Args)]
pub(crate) struct NewArguments {
    /// The name of the model.
    name: ModelName,
    /// What to start from.
    #[arg(long, value_enum)]
    template: Template,
    /// The folder to write, which must not exist. By default, the name in the current folder.
    #[arg(long, short, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// A clone of Guesthouse's repository, whose SDK a Rust guest then refers to. By default, the folder
    /// gets a copy of the SDK that this program contains.
    #[arg(long, value_name = "FOLDER")]
    sdk: Option<PathBuf>,
}

/// A template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Template {
    /// Rust: texts in, a label and a score out.
    Text,
    /// Rust: PNG and JPEG files in, a label and a number out.
    Image,
    /// Rust: columns of numbers in, with ranges and a default, a number out.
    Tabular,
    /// Python: texts in, a label and a score out.
    Python,
    /// JavaScript: texts in, a label and a score out.
    Javascript,
}

impl Template {
    fn folder(self) -> &'static str {
        match self {
            Self::Text => "text/",
            Self::Image => "image/",
            Self::Tabular => "tabular/",
            Self::Python => "python/",
            Self::Javascript => "javascript/",
        }
    }

    fn is_rust(self) -> bool {
        matches!(self, Self::Text | Self::Image | Self::Tabular)
    }
}

/// Where a Rust guest has its SDK from.
enum Sdk {
    /// A copy in the folder.
    Copied,
    /// A clone of the repository, by its absolute path.
    Clone(String),
}

/// The folder of the copied SDK, which has the layout of the repository.
const COPIED_SDK: &str = "guesthouse";

pub(crate) fn run(arguments: &NewArguments) -> anyhow::Result<()> {
    let NewArguments { name, template, output, sdk } = arguments;
    let output = output.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    create(name, *template, &output, sdk.as_deref())
        .with_context(|| format!("failed to make {}", output.display()))?;
    let folder = printable(&output.to_string_lossy()).to_string();
    println!("{folder} is ready: its README.md has the commands to build, test and pack it");
    Ok(())
}

fn create(
    name: &ModelName,
    template: Template,
    output: &Path,
    sdk: Option<&Path>,
) -> anyhow::Result<()> {
    if output.symlink_metadata().is_ok() {
        bail!("it is there already: name another folder by --output, or remove it")
    }
    let files = files(name, template, &find_sdk(template, sdk)?)?;
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new().prefix(".new-").tempdir_in(parent);
    let folder = folder.with_context(|| format!("cannot write to {}", parent.display()))?;
    for (path, text) in &files {
        let path = folder.path().join(path);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(folder.path()))?;
            fs::write(&path, text)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    // A temporary folder is private.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    fs::rename(folder.path(), output).context("cannot give the folder its name")?;
    // Nothing is there any more to be removed.
    let _ = folder.keep();
    Ok(())
}

fn find_sdk(template: Template, sdk: Option<&Path>) -> anyhow::Result<Sdk> {
    let Some(sdk) = sdk else { return Ok(Sdk::Copied) };
    if !template.is_rust() {
        bail!("--sdk is only for guests in Rust: leave it out")
    }
    if !sdk.join("plugins/sdk/Cargo.toml").is_file() {
        bail!("{} is not a clone of the repository: it has no plugins/sdk", sdk.display())
    }
    let absolute = fs::canonicalize(sdk).context("cannot find the SDK")?;
    let path = absolute.to_str().filter(|path| !path.contains(['"', '\\', '\n']));
    let path = path.context("the path of the SDK has characters that a Cargo.toml cannot have")?;
    Ok(Sdk::Clone(path.to_owned()))
}

/// The files by their paths.
fn files(
    name: &ModelName,
    template: Template,
    sdk: &Sdk,
) -> anyhow::Result<BTreeMap<String, String>> {
    let (sdk_path, note) = match sdk {
        Sdk::Copied => (COPIED_SDK, COPIED_NOTE.to_owned()),
        Sdk::Clone(path) => (path.as_str(), format!("The SDK is that of the clone in `{path}`.")),
    };
    let fill = |text: &str| {
        text.replace("{{name}}", name.as_str())
            .replace("{{sdk}}", sdk_path)
            .replace("{{sdk_note}}", &note)
    };
    let mut files = BTreeMap::new();
    for (path, text) in embedded::templates()? {
        if let Some(path) = path.strip_prefix(template.folder()) {
            // A file of that name in the repository would hide files of the template.
            let path = if path == "gitignore" { ".gitignore" } else { path };
            files.insert(path.to_owned(), fill(&text));
        }
    }
    if !template.is_rust() {
        files.extend(embedded::contract()?);
        return Ok(files);
    }
    // The versions of all dependencies that the SDK is tested with.
    files.extend(embedded::lock()?);
    if let Sdk::Copied = sdk {
        let inside = |(path, text)| (format!("{COPIED_SDK}/{path}"), text);
        files.extend(embedded::sdk()?.into_iter().chain(embedded::contract()?).map(inside));
    }
    Ok(files)
}

const COPIED_NOTE: &str = "The SDK is in `guesthouse`, as it was in the program that made this folder; \
`guesthouse new` of another version makes another copy.";
