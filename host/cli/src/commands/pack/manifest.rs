//! The manifest of an ONNX model, and the files that it names.
//!
//! Lists of texts in files become a part of the manifest; tokenizers become assets. Paths are relative
//! to the manifest's folder. What the manifest says about the graph is checked by the guest.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use guesthouse_artifact::{Manifest, open_regular};
use guesthouse_onnx_manifest::{About, Labels, OnnxManifest};

/// The largest manifest.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// The largest file of texts: those of 100,000 classes.
const MAX_LABELS_BYTES: u64 = 4 << 20;

/// A manifest as it is packed.
#[derive(Debug, Clone, Default)]
pub(super) struct ModelManifest {
    about: About,
    /// What the guest reads; empty if there is no manifest.
    pub(super) json: Vec<u8>,
    /// The assets beside the graph and the manifest, by name.
    assets: BTreeMap<String, PathBuf>,
}

impl ModelManifest {
    /// Read a manifest and the texts that it names.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = read_text(path, MAX_MANIFEST_BYTES)?;
        let wrong = |error: String| format!("the manifest {}: {error}", path.display());
        let mut manifest: OnnxManifest = toml::from_str(&text)
            .map_err(|error| anyhow::anyhow!(wrong(message_with_line(&error, &text))))?;
        let folder = std::path::absolute(path).context("cannot find the manifest")?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        for labels in manifest.labels_mut() {
            if let Labels::File(file) = labels {
                let texts = read_labels(&folder.join(&*file))
                    .with_context(|| wrong(format!("{file:?}")))?;
                *labels = Labels::Texts(texts);
            }
        }
        let mut assets = BTreeMap::new();
        for (index, tokenize) in manifest.tokenize.iter_mut().enumerate() {
            let file = folder.join(&tokenize.tokenizer);
            if !file.is_file() {
                bail!(wrong(format!(
                    "there is no file {}: set `tokenizer` to the path of a tokenizer.json",
                    file.display()
                )));
            }
            tokenize.tokenizer = format!("tokenizer-{index}.json");
            assets.insert(tokenize.tokenizer.clone(), file);
        }
        let json = serde_json::to_vec(&manifest).context("cannot write the manifest as JSON")?;
        Ok(Self { about: manifest.about, json, assets })
    }

    /// Add it to the manifest of an artifact; `json` is a file of what the guest reads.
    pub(super) fn add_to(self, artifact: &mut Manifest, json: &Path) {
        artifact.assets.extend(self.assets);
        artifact.assets.insert("manifest.json".to_owned(), json.to_owned());
        let About { description, licenses, authors, source, revision, provenance } = self.about;
        artifact.description = description;
        artifact.licenses = licenses;
        artifact.authors = authors;
        artifact.source = source;
        artifact.revision = revision;
        artifact.provenance = provenance;
    }
}

/// The texts of a file, one in each line.
fn read_labels(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = read_text(path, MAX_LABELS_BYTES)?;
    if let Some(line) = text.lines().position(str::is_empty) {
        bail!("line {} is empty: put a text into each line", line + 1);
    }
    Ok(text.lines().map(str::to_owned).collect())
}

fn read_text(path: &Path, most: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = open_regular(path);
    let file = file.and_then(|file| file.take(most + 1).read_to_string(&mut text));
    file.with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() as u64 > most {
        bail!("{} is larger than {} MiB", path.display(), most >> 20);
    }
    Ok(text)
}

/// The message of an error with its line number, in one line.
fn message_with_line(error: &toml::de::Error, text: &str) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
        return error.message().to_owned();
    };
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}
