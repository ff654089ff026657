//! Compresses what becomes a part of the program: the guest of `guesthouse pack --onnx`, and the
//! templates of `guesthouse new` with the SDK and the contract that they refer to.
//!
//! `cargo xtask` builds the guest first, to the target folder; `GUESTHOUSE_ONNX_GUEST` is the path of
//! another one. Where there is none, the program has none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// A few seconds for a few megabytes.
const LEVEL: i32 = 15;

/// The guest in the target folder.
const BUILT: &str = "wasm32-wasip2/guest/onnx.wasm";

/// `OUT_DIR` is `<target>/<profile>/build/<package>/out`.
const DEPTH: usize = 4;

/// The folder of the repository.
const ROOT: &str = "../..";

/// What a guest's crate needs of the repository.
const SDK: [&str; 5] =
    ["Cargo.toml", "host/arithmetic", "plugins/sdk", "LICENSE-APACHE", "LICENSE-MIT"];

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    compress_guest(&out)?;
    let root = Path::new(ROOT);
    pack(Path::new("templates"), &[""], &out.join("templates.zst"))?;
    pack(root, &["wit"], &out.join("wit.zst"))?;
    pack(root, &["Cargo.lock"], &out.join("lock.zst"))?;
    pack(root, &SDK, &out.join("sdk.zst"))
}

fn compress_guest(out: &Path) -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=GUESTHOUSE_ONNX_GUEST");
    let built = || out.ancestors().nth(DEPTH).unwrap_or(Path::new("")).join(BUILT);
    let guest = env::var_os("GUESTHOUSE_ONNX_GUEST").map_or_else(built, PathBuf::from);
    println!("cargo::rerun-if-changed={}", guest.display());
    let compressed = match fs::read(&guest) {
        Ok(component) => zstd::bulk::compress(&component, LEVEL)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    fs::write(out.join("onnx-guest.zst"), compressed)
}

/// Write the texts below `root` at these paths as a compressed JSON object by path.
fn pack(root: &Path, paths: &[&str], output: &Path) -> io::Result<()> {
    let mut texts = BTreeMap::new();
    for path in paths {
        let path = root.join(path);
        println!("cargo::rerun-if-changed={}", path.display());
        collect(root, &path, &mut texts)?;
    }
    let json = serde_json::to_vec(&texts).map_err(io::Error::other)?;
    fs::write(output, zstd::bulk::compress(&json, LEVEL)?)
}

fn collect(root: &Path, path: &Path, texts: &mut BTreeMap<String, String>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(root, &entry?.path(), texts)?;
        }
        return Ok(());
    }
    let name = path.strip_prefix(root).map_err(io::Error::other)?;
    let text = fs::read_to_string(path)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    texts.insert(name.to_string_lossy().into_owned(), text);
    Ok(())
}
