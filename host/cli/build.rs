//! Compresses the guest of `guesthouse pack --onnx`, which becomes a part of the program.
//!
//! `cargo xtask` builds it first, to the target folder; `GUESTHOUSE_ONNX_GUEST` is the path of another
//! one. Where there is none, the program has none.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// A few seconds for a few megabytes.
const LEVEL: i32 = 15;

/// The guest in the target folder.
const BUILT: &str = "wasm32-wasip2/guest/onnx.wasm";

/// `OUT_DIR` is `<target>/<profile>/build/<package>/out`.
const DEPTH: usize = 4;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=GUESTHOUSE_ONNX_GUEST");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
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
