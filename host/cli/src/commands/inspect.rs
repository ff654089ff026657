//! `guesthouse inspect`: prints the contents of an artifact.

mod profile;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use guesthouse_artifact::{Artifact, ArtifactMetadata, GoldenExample, Tolerances};
use guesthouse_model::contract::SignatureSnapshot;
use guesthouse_model::terminal::{printable, printable_json};
use guesthouse_model::{Constraint, Field, Signature};
use guesthouse_runtime::preinit::{InstanceStart, PreinitReport};
use guesthouse_runtime::store;
use serde::Serialize;
use serde_json::{Map, Value};

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArguments {
    /// The artifact.
    file: PathBuf,
    /// The state folder of a server, to print the cost of compiling the artifact there as well.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Print the signature alone, in canonical JSON, for `guesthouse check`.
    #[arg(long, conflicts_with_all = ["json", "state"])]
    signature: bool,
    /// Run the model on its first golden example, and print where the time of a call goes: by function
    /// of the host's arithmetic and by function of the guest, with the host's arithmetic and without.
    /// Compiles the artifact, which takes seconds.
    #[arg(long, conflicts_with_all = ["signature", "state"])]
    profile: bool,
    /// How often the example is repeated in a call.
    #[arg(long, default_value_t = 1, requires = "profile")]
    rows: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The contents of an artifact. The JSON form is stable.
#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a str,
    version: String,
    digest: String,
    size_bytes: usize,
    metadata: &'a ArtifactMetadata,
    provenance: Option<&'a str>,
    parameters: &'a BTreeMap<String, String>,
    signature: Option<&'a Signature>,
    assets: Vec<Asset<'a>>,
    imports: &'a [String],
    exports: &'a [String],
    /// Whether the guest imports operations that the host executes.
    imports_arithmetic: bool,
    tolerances: &'a Tolerances,
    golden_examples: &'a [GoldenExample],
    compiled: &'a BTreeMap<String, PreinitReport>,
}

#[derive(Debug, Serialize)]
struct Asset<'a> {
    name: &'a str,
    size_bytes: usize,
    digest: Option<&'a str>,
}

pub(crate) fn run(arguments: &InspectArguments) -> anyhow::Result<()> {
    let artifact = Artifact::open(&arguments.file)
        .with_context(|| format!("failed to inspect {}", arguments.file.display()))?;
    if let Some(signature) = artifact.signature().filter(|_| arguments.signature) {
        let snapshot = SignatureSnapshot::new(artifact.id(), signature);
        println!("{}", printable_json(&snapshot.canonical()));
        return Ok(());
    }
    if arguments.profile {
        return profile::run(&artifact, &arguments.file, arguments.rows, arguments.json);
    }
    let descriptor = artifact.descriptor();
    let asset = |(name, size_bytes)| {
        let digest = descriptor.assets.get(name).map(String::as_str);
        Asset { name, size_bytes, digest }
    };
    let compiled = match &arguments.state {
        Some(state) => store::reports(state, artifact.digest()).context("failed to inspect")?,
        None => BTreeMap::new(),
    };
    let report = Report {
        model: artifact.id().name.as_str(),
        version: artifact.id().version.to_string(),
        digest: artifact.digest().to_string(),
        size_bytes: artifact.size_bytes(),
        metadata: artifact.metadata(),
        provenance: descriptor.provenance.as_deref(),
        parameters: &descriptor.parameters,
        signature: artifact.signature(),
        assets: artifact.assets().map(asset).collect(),
        imports: artifact.imports(),
        exports: artifact.exports(),
        imports_arithmetic: artifact.imports_arithmetic(),
        tolerances: &descriptor.tolerances,
        golden_examples: artifact.golden(),
        compiled: &compiled,
    };
    if arguments.json {
        println!("{}", printable_json(&serde_json::to_string_pretty(&report)?));
    } else {
        print_for_people(&report);
    }
    Ok(())
}

fn print_for_people(report: &Report<'_>) {
    let line = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            println!("{name:<12} {}", printable(value));
        }
    };
    line("model", Some(report.model));
    line("version", Some(&report.version));
    line("digest", Some(&report.digest));
    line("size", Some(&size(report.size_bytes)));
    line("description", report.metadata.description.as_deref());
    line("licenses", report.metadata.licenses.as_deref());
    line("authors", report.metadata.authors.as_deref());
    line("source", report.metadata.source.as_deref());
    line("revision", report.metadata.revision.as_deref());
    line("provenance", report.provenance);
    if let Some(signature) = report.signature {
        println!("inputs");
        signature.inputs.iter().for_each(print_field);
        println!("outputs");
        signature.outputs.iter().for_each(print_field);
        println!("{:<12} {} rows", "batch", signature.max_batch_size);
    }
    println!("parameters");
    for (name, value) in report.parameters {
        println!("  {} = {}", printable(name), printable(value));
    }
    println!("assets");
    for asset in &report.assets {
        println!("  {:<20} {}", printable(asset.name), size(asset.size_bytes));
    }
    println!("imports");
    report.imports.iter().for_each(|import| println!("  {}", printable(import)));
    let arithmetic = if report.imports_arithmetic { "used if granted" } else { "not used" };
    println!("{:<12} {arithmetic}", "arithmetic");
    println!("exports");
    report.exports.iter().for_each(|export| println!("  {}", printable(export)));
    println!("golden examples ({})", report.golden_examples.len());
    for example in report.golden_examples {
        println!("  {} -> {}", excerpt(&example.inputs), excerpt(&example.outputs));
    }
    for (output, tolerance) in report.tolerances {
        println!("  {} within {tolerance}", printable(output));
    }
    for (engine, compiled) in report.compiled {
        println!("compiled for engine {}", printable(engine));
        print_compiled(compiled);
    }
}

fn print_compiled(compiled: &PreinitReport) {
    match &compiled.start {
        InstanceStart::Snapshot => println!("  instances start from a snapshot"),
        InstanceStart::Init(why) => println!("  init runs in each instance: {}", printable(why)),
    }
    if compiled.arithmetic {
        println!("  init was granted arithmetic");
    }
    for (step, milliseconds) in &compiled.steps_ms {
        println!("  {:<20} {milliseconds} ms", printable(step));
    }
    println!("  {:<20} {} MiB", "peak memory", compiled.peak_memory_bytes >> 20);
}

/// The first characters of a record.
fn excerpt(record: &Map<String, Value>) -> String {
    let json = serde_json::to_string(record).unwrap_or_default();
    let shown: String = json.chars().take(80).collect();
    let cut = if shown.len() < json.len() { "…" } else { "" };
    format!("{}{cut}", printable(&shown))
}

fn print_field(field: &Field) {
    let dimension = |size: &Option<u32>| size.map_or("any".to_owned(), |size| size.to_string());
    let mut shape = vec!["rows".to_owned()];
    shape.extend(field.row_shape.iter().map(dimension));
    let datatype = format!("{:?}", field.datatype).to_uppercase();
    let optional = if field.default.is_some() { " (optional)" } else { "" };
    let (name, description) = (printable(&field.name), printable(&field.description));
    println!("  {name} {datatype}[{}]{optional}: {description}", shape.join(", "));
    for constraint in &field.constraints {
        println!("    {}", printable(&describe(constraint)));
    }
}

fn describe(constraint: &Constraint) -> String {
    let bound = |bound: &Option<f64>| bound.map_or("any".to_owned(), |bound| bound.to_string());
    match constraint {
        Constraint::Text => "UTF-8 text".to_owned(),
        Constraint::Stripped => "white space at both ends is removed".to_owned(),
        Constraint::Length { minimum, maximum } => format!("length {minimum} to {maximum}"),
        Constraint::Range { minimum, maximum } => {
            format!("from {} to {}", bound(minimum), bound(maximum))
        }
        Constraint::OneOf(labels) => format!("one of {}", labels.join(", ")),
        Constraint::Padded(element) => {
            let bytes: String = element.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("shorter rows are filled up with 0x{bytes} to share a batch")
        }
    }
}

fn size(bytes: usize) -> String {
    if bytes < 10 << 10 {
        format!("{bytes} bytes")
    } else if bytes < 10 << 20 {
        format!("{} KiB", bytes >> 10)
    } else {
        format!("{} MiB", bytes >> 20)
    }
}
