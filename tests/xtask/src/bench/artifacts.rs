//! The artifacts under measurement: packed models, and the misbehaving guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::workspace::{Profile, Workspace};
use crate::{pack, run};

/// A version of a model, with requests for it.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) artifact: PathBuf,
    /// The digest in hexadecimal, with which the names of its compiled files begin.
    pub(super) digest: String,
    /// The inputs of its golden examples.
    pub(super) bodies: Vec<Value>,
    /// Text that every correct response contains.
    pub(super) contains: String,
}

impl Model {
    /// Reads an artifact with `guesthouse inspect`.
    pub(super) fn inspect(workspace: &Workspace, artifact: &Path) -> Result<Self> {
        let mut inspect = Command::new(workspace.host_binary(Profile::Release));
        let text = run::output(inspect.args(["inspect", "--json"]).arg(artifact))?;
        let report: Value =
            serde_json::from_str(&text).context("the output of `inspect` is not JSON")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let parts = || {
            let digest = text(&report["digest"])?.strip_prefix("sha256:")?.to_owned();
            let output = text(&report["signature"]["outputs"][0]["name"])?;
            Some((text(&report["model"])?, text(&report["version"])?, digest, output))
        };
        let (name, version, digest, output) =
            parts().with_context(|| format!("cannot parse the report: {report}"))?;
        let examples = report["golden_examples"].as_array().into_iter().flatten();
        let bodies: Vec<Value> = examples.map(|example| example["inputs"].clone()).collect();
        ensure!(!bodies.is_empty(), "{} has no golden examples", artifact.display());
        let (artifact, contains) = (artifact.to_owned(), format!("\"{output}\":"));
        Ok(Self { name, version, artifact, digest, bodies, contains })
    }

    /// The path for predictions with exactly this version.
    pub(super) fn path(&self) -> String {
        format!("/models/{}/versions/{}/predict", self.name, self.version)
    }
}

/// Packs a version of a model again under other version numbers. Artifacts that are up to date are
/// kept.
pub(super) fn pack_renumbered(
    workspace: &Workspace,
    (model, version): (&str, &str),
    numbers: &[String],
    folder: &Path,
) -> Result<Vec<Model>> {
    let sources = workspace.models().join(model);
    let source = sources.join(version);
    let manifest = source.join("manifest.toml");
    let text = fs::read_to_string(&manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (mut models, mut artifacts) = (Vec::new(), Vec::new());
    for number in numbers {
        let renumbered = folder.join(format!("{model}-{number}.toml"));
        fs::write(&renumbered, renumber(&text, number, &source)?)
            .with_context(|| format!("cannot write {}", renumbered.display()))?;
        models.push(pack::read_manifest(&sources, renumbered)?);
        artifacts.push(folder.join(format!("{model}-{number}.wasm")));
    }
    pack::pack_into(folder, workspace, &models, &workspace.host_binary(Profile::Release))?;
    artifacts.iter().map(|artifact| Model::inspect(workspace, artifact)).collect()
}

/// Changes the version of a manifest and makes its paths absolute.
fn renumber(manifest: &str, number: &str, folder: &Path) -> Result<String> {
    let mut manifest: toml::Table = manifest.parse().context("a manifest is not TOML")?;
    let place = |file: &mut toml::Value| -> Option<()> {
        let path = folder.join(file.as_str()?);
        *file = toml::Value::String(path.to_str()?.to_owned());
        Some(())
    };
    manifest.insert("version".to_owned(), number.into());
    let assets = manifest.get_mut("assets").and_then(toml::Value::as_table_mut);
    let mut placed: Vec<_> = assets.into_iter().flatten().map(|(_, file)| place(file)).collect();
    placed.push(manifest.get_mut("golden").and_then(|golden| place(golden.get_mut("file")?)));
    ensure!(placed.iter().all(Option::is_some), "a manifest has no file names");
    Ok(manifest.to_string())
}

/// Packs the misbehaving guest with an `init` that succeeds.
pub(super) fn pack_misbehave(
    workspace: &Workspace,
    folder: &Path,
    version: &str,
) -> Result<PathBuf> {
    let golden = r#"{"inputs": {"action": "echo"}, "outputs": {"done": "echo"}}"#;
    pack(workspace, folder, ("misbehave", version), ("init = \"well\"", golden))
}

/// Packs the guest that lets the host execute what its callers describe.
pub(super) fn pack_arithmetic(workspace: &Workspace, folder: &Path) -> Result<PathBuf> {
    let golden = r#"{"inputs": {"call": "init"}, "outputs": {"result": "AACAPwAAgEAAABBB"}}"#;
    pack(workspace, folder, ("arithmetic", "1.0.0"), ("insist = \"false\"", golden))
}

/// Packs a version of a guest with a parameter and a golden example.
fn pack(
    workspace: &Workspace,
    folder: &Path,
    (name, version): (&str, &str),
    (parameter, golden): (&str, &str),
) -> Result<PathBuf> {
    let manifest = folder.join(format!("{name}.toml"));
    let output = folder.join(format!("{name}-{version}.wasm"));
    let text = format!(
        "name = \"{name}\"\nversion = \"{version}\"\n[parameters]\n{parameter}\n\
         [golden]\nfile = \"{name}.jsonl\"\n"
    );
    fs::write(&manifest, text)
        .and_then(|()| fs::write(folder.join(format!("{name}.jsonl")), format!("{golden}\n")))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    let mut pack = Command::new(workspace.host_binary(Profile::Release));
    pack.arg("pack").arg("--manifest").arg(&manifest);
    pack.arg("--component").arg(workspace.component(name)).arg("--output").arg(&output);
    run::output(&mut pack)?;
    Ok(output)
}

/// Changes what `init` of a packed artifact does. `pack` would run it and fail.
pub(super) fn set_init(artifact: &Path, word: &str) -> Result<()> {
    let bytes = fs::read(artifact).context("cannot read the artifact")?;
    let bytes = with_init(bytes, word)?;
    fs::remove_file(artifact)
        .and_then(|()| fs::write(artifact, bytes))
        .context("cannot write the artifact")
}

fn with_init(mut bytes: Vec<u8>, word: &str) -> Result<Vec<u8>> {
    let from = br#""init":"well""#;
    let to = format!(r#""init":"{word}""#);
    ensure!(from.len() == to.len(), "the section sizes must not change");
    let mut places = bytes.windows(from.len()).enumerate().filter(|(_, part)| part == from);
    let (first, second) = (places.next().map(|(place, _)| place), places.next());
    let (Some(place), None) = (first, second) else {
        anyhow::bail!("the artifact does not contain the init parameter exactly once")
    };
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renumbering_changes_the_version_and_the_file_paths() {
        let manifest = "name = \"a\"\nversion = \"1.0.0\"\n[assets]\n\"x.bin\" = \"../x.bin\"\n\
                        [golden]\nfile = \"golden.jsonl\"\n[golden.tolerance]\ny = 1e-4\n";
        let renumbered = renumber(manifest, "1.0.7", Path::new("/m/1.0.0")).unwrap();
        let wanted = manifest.replace("version = \"1.0.0\"", "version = \"1.0.7\"");
        let wanted =
            wanted.replace("../x", "/m/1.0.0/../x").replace("golden.j", "/m/1.0.0/golden.j");
        assert_eq!(renumbered.parse::<toml::Table>().unwrap(), wanted.parse().unwrap());
        assert!(renumber("name = \"a\"", "1.0.7", Path::new("/m")).is_err());
    }

    #[test]
    fn patching_changes_only_the_init_parameter() {
        let with = |bytes: &[u8]| with_init(bytes.to_vec(), "spin");
        assert_eq!(with(br#"a{"init":"well"}"well"b"#).unwrap(), br#"a{"init":"spin"}"well"b"#);
        assert!(with(b"well").is_err());
        assert!(with(br#""init":"well""init":"well""#).is_err());
        assert!(with_init(br#""init":"well""#.to_vec(), "longer").is_err());
    }
}
