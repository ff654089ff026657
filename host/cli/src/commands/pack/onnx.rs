//! `guesthouse pack --onnx`: makes an artifact of an ONNX file, with the guest that this program
//! contains.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use guesthouse_artifact::{
    self as artifact, GoldenFile, MAX_ARTIFACT_BYTES, Manifest, open_regular,
};
use guesthouse_model::{Datatype, Field, ModelName, Signature};
use guesthouse_runtime::embed::{Runtime, RuntimeOptions};
use semver::Version;

use super::super::cache::CodeCache;
use super::example::example;
use super::manifest::ModelManifest;
use super::{Draft, PackArguments, Packed, difference, external_data};

/// The guest, compressed; empty if the program was built without it.
const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onnx-guest.zst"));

/// The largest guest that the program contains, uncompressed.
const MAX_GUEST_BYTES: usize = 64 << 20;

/// The most rows of a call, unless the command line has another number.
const MAX_BATCH_SIZE: u32 = 32;

/// How far outputs may be from the golden examples: the framework that made those adds in another
/// order.
const TOLERANCE: f64 = 1e-4;

/// What the examples of a file are compared with, before that file has been made.
const PLACEHOLDER: &str = r#"{"inputs": {}, "outputs": {"none": 0}}"#;

/// What to do without golden examples.
const ADVICE: &str = "note: no golden examples are given, so that the model is not compared with its \
    framework: make some by `python -m guesthouse_pack golden MODEL.onnx INPUTS.jsonl > golden.jsonl`, \
    and pack with --golden golden.jsonl";

/// Where an artifact of an ONNX file comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct OnnxArguments {
    /// An ONNX file: the artifact serves its graph, on tensors as they are unless a manifest says
    /// otherwise.
    #[arg(long, requires_all = ["name", "version"])]
    pub(super) onnx: Option<PathBuf>,
    /// The name of the model.
    #[arg(long, requires = "onnx")]
    name: Option<ModelName>,
    /// The semantic version.
    #[arg(long, requires = "onnx")]
    version: Option<Version>,
    /// Golden examples: lines of JSON, {"inputs": {…}, "outputs": {…}} each, with outputs of the
    /// framework that the model comes from. Without it, one example is made of zeros and of what this
    /// program computes, which only shows that later servers compute the same.
    #[arg(long, requires = "onnx")]
    golden: Option<PathBuf>,
    /// How far outputs may be from the golden examples. By default 0.0001.
    #[arg(long, requires = "golden")]
    tolerance: Option<f64>,
    /// The most rows of a call, if the graph's batch varies. By default 32.
    #[arg(long, requires = "onnx", value_parser = clap::value_parser!(u32).range(1..))]
    max_batch_size: Option<u32>,
}

/// Make a packed artifact that has proved itself.
pub(super) fn pack(arguments: &PackArguments, file: &Path) -> anyhow::Result<Packed> {
    let options = &arguments.onnx;
    let component = component(arguments.component.as_deref())?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let placeholder = folder.path().join("golden.jsonl");
    std::fs::write(&placeholder, PLACEHOLDER).context("cannot write a temporary file")?;
    let given = options.golden.as_deref().map(std::path::absolute).transpose();
    let given = given.context("cannot find the golden examples")?;

    let what = format!("failed to pack {}", file.display());
    let model = arguments.manifest.as_deref().map(ModelManifest::read).transpose()?;
    let model = model.unwrap_or_default();
    let graph = graph(file, folder.path()).with_context(|| what.clone())?;
    let json = folder.path().join("manifest.json");
    std::fs::write(&json, &model.json).context("cannot write a temporary file")?;

    let draft = |golden: PathBuf, tolerance: BTreeMap<String, f64>| {
        let mut manifest = manifest(options, &graph, GoldenFile { file: golden, tolerance })?;
        if !model.json.is_empty() {
            model.clone().add_to(&mut manifest, &json);
        }
        let bytes = artifact::pack_files(manifest, folder.path(), &component);
        bytes.with_context(|| what.clone())
    };
    eprintln!("loading the graph");
    let golden = given.clone().unwrap_or_else(|| placeholder.clone());
    let first = Draft::new(draft(golden, BTreeMap::new())?, folder.path())?;
    let cache = CodeCache::open()?;
    let runtime = runtime(cache.folder())?;
    let report = runtime.declare(first.path()).with_context(|| what.clone())?;
    let tolerances = tolerances(&report.signature, options.tolerance.unwrap_or(TOLERANCE));

    eprintln!("running the graph");
    let bytes = match given {
        Some(golden) => {
            let bytes = artifact::add_signature(draft(golden, tolerances)?, &report.signature);
            let trial = Draft::new(bytes.clone(), folder.path())?;
            let loaded = runtime.load(trial.path()).with_context(|| what.clone())?;
            difference::print(&loaded, trial.path())?;
            bytes
        }
        None => {
            let draft_bytes = draft(placeholder.clone(), BTreeMap::new())?;
            let bytes = artifact::add_signature(draft_bytes, &report.signature);
            let trial = Draft::new(bytes, folder.path())?;
            let example =
                example(&runtime, trial.path(), &report.signature).with_context(|| what.clone())?;
            std::fs::write(&placeholder, example).context("cannot write a temporary file")?;
            eprintln!("{ADVICE}");
            artifact::add_signature(draft(placeholder, tolerances)?, &report.signature)
        }
    };
    runtime.remove_unused();
    Ok(Packed { bytes, report })
}

/// The component of the guest.
fn component(given: Option<&Path>) -> anyhow::Result<Cow<'static, [u8]>> {
    if let Some(path) = given {
        let bytes = std::fs::read(path);
        return Ok(Cow::Owned(bytes.with_context(|| format!("cannot read {}", path.display()))?));
    }
    if GUEST.is_empty() {
        bail!("this program was built without the guest for ONNX files: give it by --component")
    }
    let bytes = zstd::bulk::decompress(GUEST, MAX_GUEST_BYTES);
    Ok(Cow::Owned(bytes.context("the guest in this program is damaged")?))
}

/// The file of the graph with all of its data: the given one, or one in the temporary folder.
fn graph(file: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let mut bytes = Vec::new();
    let read = open_regular(file)
        .and_then(|file| file.take(MAX_ARTIFACT_BYTES + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", file.display()))?;
    if bytes.len() as u64 > MAX_ARTIFACT_BYTES {
        bail!("it is larger than {} MiB", MAX_ARTIFACT_BYTES >> 20);
    }
    let Some(whole) = external_data::inline(file, &bytes)? else {
        return std::path::absolute(file).context("cannot find the ONNX file");
    };
    let graph = folder.join("model.onnx");
    std::fs::write(&graph, whole).context("cannot write a temporary file")?;
    Ok(graph)
}

fn manifest(options: &OnnxArguments, file: &Path, golden: GoldenFile) -> anyhow::Result<Manifest> {
    let (Some(name), Some(version)) = (options.name.clone(), options.version.clone()) else {
        bail!("--onnx needs --name and --version")
    };
    let most = options.max_batch_size.unwrap_or(MAX_BATCH_SIZE);
    Ok(Manifest {
        name,
        version,
        description: None,
        licenses: None,
        authors: None,
        source: None,
        revision: None,
        provenance: None,
        guest: None,
        parameters: BTreeMap::from([("max_batch_size".to_owned(), most.to_string())]),
        assets: BTreeMap::from([("model.onnx".to_owned(), file.to_owned())]),
        golden,
    })
}

/// The same tolerance for all outputs that are floating-point numbers.
fn tolerances(signature: &Signature, tolerance: f64) -> BTreeMap<String, f64> {
    let is_float = |field: &&Field| {
        let floats = [Datatype::Fp16, Datatype::Bf16, Datatype::Fp32, Datatype::Fp64];
        floats.contains(&field.datatype)
    };
    let outputs = signature.outputs.iter().filter(is_float);
    outputs.map(|field| (field.name.clone(), tolerance)).collect()
}

fn runtime(state: &Path) -> anyhow::Result<Runtime> {
    let program = std::env::current_exe().context("cannot find this program")?;
    Ok(Runtime::open(state, RuntimeOptions::for_one_artifact(program))?)
}
