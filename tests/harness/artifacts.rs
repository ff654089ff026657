//! Artifacts for tests: the packed models of the repository, and artifacts that `guesthouse pack`
//! would refuse to write.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions};

use crate::environment;

/// The packed artifact of one version of the toxicity model.
pub fn toxicity(version: &str) -> PathBuf {
    environment::repository().join(format!("toxicity-{version}.wasm"))
}

/// The packed artifact of the text direction model.
pub fn text_direction() -> PathBuf {
    environment::repository().join("text-direction-1.0.0.wasm")
}

/// Creates a temporary folder that is removed when the returned guard is dropped.
///
/// # Panics
/// The scratch folder is not writable.
pub fn temporary_folder() -> TempDir {
    let scratch = environment::scratch();
    std::fs::create_dir_all(&scratch).expect("the scratch folder can be made");
    tempfile::tempdir_in(scratch).expect("a temporary folder can be made")
}

/// Runs the host program and waits for it to exit.
///
/// # Panics
/// The program cannot be started.
pub fn run_host(arguments: &[&str]) -> Output {
    let mut command = Command::new(environment::host());
    command.args(arguments).output().expect("the host program can be run")
}

/// Writes a component that contains `component` and forwards its imports and exports. It is built
/// with `wac-graph`, the library behind the usual composition tool.
///
/// # Panics
/// The component cannot be read, composed or written.
pub fn compose(component: &Path, output: &Path) {
    let compose = || -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let mut graph = CompositionGraph::new();
        let package = Package::from_file("test:inner", None, component, graph.types_mut())?;
        // In the version of the contract that the component was built for.
        let exports: Vec<_> = graph.types()[package.ty()].exports.keys().cloned().collect();
        let package = graph.register_package(package)?;
        let inner = graph.instantiate(package);
        for export in exports {
            let node = graph.alias_instance_export(inner, &export)?;
            graph.export(node, export)?;
        }
        Ok(graph.encode(EncodeOptions::default())?)
    };
    let composed = compose().expect("a guest can be composed");
    std::fs::write(output, composed).expect("the folder is writable");
}

/// The folder of the models that exist only for tests: `simple` and `simple_string`, which
/// published clients expect, the `identity_*` models, and `row_sum`.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// The names of all test models, sorted.
///
/// # Panics
/// The folder is not readable.
pub fn fixture_names() -> Vec<String> {
    let folder = std::fs::read_dir(fixtures()).expect("the test models are readable");
    let paths = folder.map(|entry| entry.expect("the folder is readable").path());
    let models = paths.filter(|path| path.is_dir());
    let mut names: Vec<_> =
        models.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// Packs the test model `model` into `folder` and returns the artifact.
///
/// # Panics
/// There is no such model, or packing fails.
pub fn fixture(model: &str, folder: &Path) -> PathBuf {
    let manifest = fixtures().join(model).join("1.0.0/manifest.toml");
    let text = std::fs::read_to_string(&manifest).expect("there is such a model");
    let guest = text.lines().find_map(|line| line.strip_prefix("guest = "));
    let guest = guest.expect("it names its guest").trim_matches('"').replace('-', "_");
    let component = environment::guests().join(guest).with_extension("wasm");
    let output = folder.join(format!("{model}-1.0.0.wasm"));
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let outcome = run_host(&[
        "pack",
        "--manifest",
        &path(&manifest),
        "--component",
        &path(&component),
        "--output",
        &path(&output),
    ]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    output
}

/// Packs a version of the `growing` guest under the given name into `folder`. `stage` selects how
/// many fields its signature has.
///
/// # Panics
/// Packing fails.
pub fn growing(name: &str, version: &str, stage: u8, folder: &Path) -> PathBuf {
    let manifest = folder.join(format!("{name}-{version}.toml"));
    let text = format!(
        "name = \"{name}\"\nversion = \"{version}\"\n[parameters]\nstage = \"{stage}\"\n\
         [golden]\nfile = \"{name}-{version}.jsonl\"\n"
    );
    std::fs::write(&manifest, text).expect("the folder is writable");
    let golden = match stage {
        1 => r#"{"inputs": {"text": "four"}, "outputs": {"length": 4}}"#,
        2 => r#"{"inputs": {"text": "four"}, "outputs": {"length": 4, "weight": 8}}"#,
        _ => r#"{"inputs": {"factor": 3, "text": "four"}, "outputs": {"weight": 12, "length": 4}}"#,
    };
    std::fs::write(manifest.with_extension("jsonl"), golden).expect("the folder is writable");
    let component = environment::guests().join("growing.wasm");
    let output = folder.join(format!("{name}-{version}.wasm"));
    pack(&manifest, &component, &output);
    output
}

/// Packs a component with its manifest.
fn pack(manifest: &Path, component: &Path, output: &Path) {
    let [manifest, component, output] = [manifest, component, output].map(Path::to_string_lossy);
    let files = ["--manifest", &manifest, "--component", &component, "--output", &output];
    let outcome = run_host(&[&["pack"], &files[..]].concat());
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
}

/// Describes an artifact of the `arithmetic` guest.
#[derive(Debug, Clone)]
pub struct Arithmetic {
    /// The version of the artifact.
    pub version: &'static str,
    /// Whether `init` calls an operation even if that is not granted.
    pub insists: bool,
    /// Whether the component is wrapped in another component.
    pub composed: bool,
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self { version: "1.0.0", insists: false, composed: false }
    }
}

impl Arithmetic {
    /// Packs the artifact into `folder`.
    ///
    /// # Panics
    /// Packing fails.
    pub fn pack(&self, folder: &Path) -> PathBuf {
        let Self { version, insists, composed } = self;
        let manifest = folder.join(format!("arithmetic-{version}.toml"));
        let text = format!(
            "name = \"arithmetic\"\nversion = \"{version}\"\n[parameters]\n\
             insist = \"{insists}\"\n[golden]\nfile = \"arithmetic.jsonl\"\n"
        );
        std::fs::write(&manifest, text).expect("the folder is writable");
        // The squares of 1, 2 and 3, whether they are computed by the host or by the guest.
        let golden = r#"{"inputs": {"call": "init"}, "outputs": {"result": "AACAPwAAgEAAABBB"}}"#;
        std::fs::write(folder.join("arithmetic.jsonl"), golden).expect("the folder is writable");
        let mut component = environment::guests().join("arithmetic.wasm");
        if *composed {
            let output = folder.join("composed-arithmetic.wasm-component");
            compose(&component, &output);
            component = output;
        }
        let output = folder.join(format!("arithmetic-{version}.wasm"));
        pack(&manifest, &component, &output);
        output
    }
}

/// Describes an artifact of the `misbehave` guest.
#[derive(Debug, Clone)]
pub struct Misbehave {
    /// The version of the artifact.
    pub version: &'static str,
    /// The golden examples, one JSON object per line.
    pub golden: &'static str,
    /// What `init` does; one of the words that the guest knows.
    pub init: &'static str,
    /// Whether the component is wrapped in another component.
    pub composed: bool,
}

impl Default for Misbehave {
    fn default() -> Self {
        let golden = r#"{"inputs": {"action": "echo"}, "outputs": {"done": "echo"}}"#;
        Self { version: "1.0.0", golden, init: "well", composed: false }
    }
}

impl Misbehave {
    /// Packs the artifact into `folder`.
    ///
    /// # Panics
    /// Packing fails.
    pub fn pack(&self, folder: &Path) -> PathBuf {
        let output = folder.join(format!("misbehave-{}.wasm", self.version));
        let outcome = self.try_pack(folder, &output);
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        output
    }

    /// Runs `guesthouse pack` and returns its output, whether it succeeded or not.
    ///
    /// # Panics
    /// The manifest or the golden examples cannot be written.
    pub fn try_pack(&self, folder: &Path, output: &Path) -> Output {
        let arguments = self.pack_arguments(folder, output);
        run_host(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs `guesthouse pack` through the command `starter`, which receives the host program and
    /// its arguments as its last arguments.
    ///
    /// # Panics
    /// The command cannot be started.
    pub fn try_pack_through(&self, starter: &[&str], folder: &Path, output: &Path) -> Output {
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).arg(environment::host());
        command.args(self.pack_arguments(folder, output));
        command.output().expect("the command can be run")
    }

    fn pack_arguments(&self, folder: &Path, output: &Path) -> Vec<String> {
        let Self { version, init, .. } = self;
        let manifest = folder.join(format!("manifest-{version}-{init}.toml"));
        let text = format!(
            "name = \"misbehave\"\nversion = \"{version}\"\n[parameters]\ninit = \"{init}\"\n\
             [golden]\nfile = \"golden.jsonl\"\n"
        );
        std::fs::write(&manifest, text).expect("the folder is writable");
        std::fs::write(folder.join("golden.jsonl"), self.golden).expect("the folder is writable");
        let mut component = environment::guests().join("misbehave.wasm");
        if self.composed {
            let composed = folder.join("composed-misbehave.wasm-component");
            compose(&component, &composed);
            component = composed;
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (manifest, component) = (text(&manifest), text(&component));
        let options =
            [("--manifest", manifest), ("--component", component), ("--output", text(output))];
        let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        std::iter::once("pack".to_owned()).chain(options).collect()
    }
}

/// Replaces the only occurrence of `from` in a file with `to`, which has the same length, so that
/// all section sizes stay valid.
///
/// # Panics
/// `from` does not occur exactly once, or the lengths differ.
pub fn replace_bytes(file: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "the file's sections keep their sizes");
    let mut bytes = std::fs::read(file).expect("the file is readable");
    let places: Vec<_> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from.as_bytes())
        .map(|(place, _)| place)
        .collect();
    let [place] = places[..] else { panic!("{from:?} occurs {} times", places.len()) };
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    // Write a new file: the old one may be hard-linked from elsewhere.
    std::fs::remove_file(file).expect("the folder is writable");
    std::fs::write(file, bytes).expect("the folder is writable");
}

/// Creates a named pipe. A reader that opens it without checking the file type blocks forever.
///
/// # Panics
/// The folder is not writable.
pub fn make_pipe(path: &Path) {
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, path, FileType::Fifo, mode, 0).expect("the folder is writable");
}

/// Appends a custom section to a component.
///
/// # Panics
/// The file is not writable, or the section is larger than 2 MiB.
pub fn append_section(file: &Path, name: &str, data: &[u8]) {
    // LEB128 with a fixed width of three bytes, which the format permits for smaller numbers too.
    let number = |number: usize| {
        let bits = |shift: u32| u8::try_from(number >> shift & 0x7f).expect("seven bits");
        assert!(number < 1 << 21, "{number} takes more than three bytes");
        [bits(0) | 0x80, bits(7) | 0x80, bits(14)]
    };
    let mut bytes = std::fs::read(file).expect("the file is readable");
    bytes.push(0);
    bytes.extend(number(3 + name.len() + data.len()));
    bytes.extend(number(name.len()));
    bytes.extend(name.as_bytes());
    bytes.extend(data);
    std::fs::write(file, bytes).expect("the file is writable");
}
