//! The texts that the build script has compressed.

use std::collections::BTreeMap;

use anyhow::Context as _;

/// The most bytes of an archive, uncompressed.
const MAX_BYTES: usize = 16 << 20;

/// The members of the workspace that a guest needs.
const MEMBERS: &str = r#"members = ["host/arithmetic", "plugins/sdk"]"#;

/// Texts by path.
type Texts = BTreeMap<String, String>;

macro_rules! archive {
    ($name:literal) => {
        unpack(include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".zst")))
    };
}

/// The templates; a path begins with the folder of the template.
pub(super) fn templates() -> anyhow::Result<Texts> {
    archive!("templates")
}

/// The contract between host and guest.
pub(super) fn contract() -> anyhow::Result<Texts> {
    archive!("wit")
}

/// The versions of dependencies.
pub(super) fn lock() -> anyhow::Result<Texts> {
    archive!("lock")
}

/// The SDK, as a workspace without the other members.
pub(super) fn sdk() -> anyhow::Result<Texts> {
    let mut texts = archive!("sdk")?;
    let workspace = texts.get_mut("Cargo.toml").context("the SDK in this program is damaged")?;
    let lines = workspace.lines().filter(|line| !line.starts_with("default-members = "));
    let lines = lines.map(|line| if line.starts_with("members = ") { MEMBERS } else { line });
    *workspace = lines.collect::<Vec<_>>().join("\n") + "\n";
    Ok(texts)
}

fn unpack(compressed: &[u8]) -> anyhow::Result<Texts> {
    let json = zstd::bulk::decompress(compressed, MAX_BYTES);
    serde_json::from_slice(&json.context("this program is damaged")?)
        .context("this program is damaged")
}
