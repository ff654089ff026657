//! Packs all model versions under `models/` into artifacts.
//!
//! A model version is a folder `models/<model>/<version>/` with a `manifest.toml`. Only the three
//! keys that determine what to build are read here; the host's `pack` command validates the
//! manifest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::run;
use crate::workspace::Workspace;

/// A model version as its manifest describes it.
pub(crate) struct Model {
    name: String,
    version: String,
    guest: String,
    manifest: PathBuf,
    /// The folder of all versions, which may share assets.
    folder: PathBuf,
}

/// All model versions of the repository, sorted by path.
pub(crate) fn models(workspace: &Workspace) -> Result<Vec<Model>> {
    models_in(&workspace.models())
}

/// Packs the test models into a folder of their own; returns the folder.
pub(crate) fn pack_fixtures(workspace: &Workspace, host: &Path) -> Result<PathBuf> {
    let repository = workspace.output().join("fixtures");
    pack_into(&repository, workspace, &models_in(&workspace.fixtures())?, host)?;
    Ok(repository)
}

fn models_in(models_folder: &Path) -> Result<Vec<Model>> {
    let mut models = Vec::new();
    for folder in entries(models_folder)? {
        if !folder.is_dir() {
            continue;
        }
        for version in entries(&folder)? {
            let manifest = version.join("manifest.toml");
            if manifest.is_file() {
                models.push(read_manifest(&folder, manifest)?);
            }
        }
    }
    Ok(models)
}

/// The guests of these models without duplicates.
pub(crate) fn guests_of(models: &[Model]) -> Vec<String> {
    let mut guests: Vec<String> = models.iter().map(|model| model.guest.clone()).collect();
    guests.sort();
    guests.dedup();
    guests
}

/// Packs the models whose artifacts are missing or outdated into the repository folder.
pub(crate) fn pack(workspace: &Workspace, models: &[Model], host: &Path) -> Result<()> {
    pack_into(&workspace.repository(), workspace, models, host)
}

/// The same for any folder.
pub(crate) fn pack_into(
    repository: &Path,
    workspace: &Workspace,
    models: &[Model],
    host: &Path,
) -> Result<()> {
    // An interrupted packer leaves its output here and not in the repository.
    let unfinished = workspace.output().join("unfinished");
    for folder in [&unfinished, repository] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    for model in models {
        let file_name = format!("{}-{}.wasm", model.name, model.version);
        let artifact = repository.join(&file_name);
        let component = workspace.component(&model.guest);
        if is_current(&artifact, &[&component, host, &model.folder])? {
            continue;
        }
        let output = unfinished.join(&file_name);
        run::shown(
            Command::new(host)
                .arg("pack")
                .arg("--manifest")
                .arg(&model.manifest)
                .arg("--component")
                .arg(&component)
                .arg("--output")
                .arg(&output),
        )?;
        fs::rename(&output, &artifact)
            .with_context(|| format!("cannot move {} into place", output.display()))?;
    }
    Ok(())
}

/// Reads the manifest of a model whose sources are in this folder.
pub(crate) fn read_manifest(folder: &Path, manifest: PathBuf) -> Result<Model> {
    let text = fs::read_to_string(&manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    let table: toml::Table =
        text.parse().with_context(|| format!("{} is not TOML", manifest.display()))?;
    let key = |name: &str| table.get(name).and_then(toml::Value::as_str).map(str::to_owned);

    let required =
        |name: &str| key(name).with_context(|| format!("{} has no `{name}`", manifest.display()));
    let name = required("name")?;
    let version = required("version")?;
    let guest = key("guest").unwrap_or_else(|| name.clone());
    Ok(Model { name, version, guest, folder: folder.to_owned(), manifest })
}

/// Whether `artifact` exists and is newer than every input, including the contents of folders.
fn is_current(artifact: &Path, inputs: &[&Path]) -> Result<bool> {
    if !artifact.exists() {
        return Ok(false);
    }
    let made = modified(artifact)?;
    for input in inputs {
        if newest(input)? >= made {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The latest modification time at or below `path`. Folders count, because removing a file changes
/// them.
fn newest(path: &Path) -> Result<SystemTime> {
    let mut time = modified(path)?;
    if path.is_dir() {
        for entry in entries(path)? {
            time = time.max(newest(&entry)?);
        }
    }
    Ok(time)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("cannot read the modification time of {}", path.display()))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut paths = list().with_context(|| format!("cannot list {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Result<Model> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.toml");
        fs::write(&path, text).unwrap();
        read_manifest(folder.path(), path)
    }

    #[test]
    fn the_guest_of_a_model_defaults_to_its_name() {
        let plain = manifest("name = 'a'\nversion = '1.0.0'").unwrap();
        assert_eq!(plain.guest, "a");
        let other = manifest("name = 'a'\nversion = '1.0.0'\nguest = 'b'").unwrap();
        assert_eq!(other.guest, "b");
        assert_eq!(guests_of(&[other, plain]), ["a", "b"]);
    }

    #[test]
    fn a_manifest_without_a_version_is_an_error() {
        assert!(manifest("name = 'a'").is_err());
    }

    #[test]
    fn an_artifact_older_than_an_input_is_outdated() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = folder.path().join("inputs");
        fs::create_dir_all(inputs.join("deep")).unwrap();
        let input = inputs.join("deep/input");
        let artifact = folder.path().join("artifact");
        fs::write(&input, "").unwrap();
        assert!(!is_current(&artifact, &[&inputs]).unwrap());

        let later = |seconds| SystemTime::now() + std::time::Duration::from_secs(seconds);
        fs::File::create(&artifact).unwrap().set_modified(later(10)).unwrap();
        assert!(is_current(&artifact, &[&inputs]).unwrap());

        fs::File::create(&input).unwrap().set_modified(later(20)).unwrap();
        assert!(!is_current(&artifact, &[&inputs]).unwrap());
    }
}
