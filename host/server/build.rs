//! Makes the types and the service of `proto/inference.proto`, without a `protoc` on the machine.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut files = protox::compile(["proto/inference.proto"], ["proto"])?;
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // What reflection tells.
    std::fs::write(folder.join("inference.bin"), prost::Message::encode_to_vec(&files))?;
    // These two are served as bytes, which the codecs of predictions read and write.
    for service in files.file.iter_mut().flat_map(|file| &mut file.service) {
        let served = |name: &str| !["ModelInfer", "ModelStreamInfer"].contains(&name);
        service.method.retain(|method| served(method.name()));
    }
    let builder = tonic_prost_build::configure().build_client(false);
    // Looks at what a message would take before it is read.
    let builder = builder.codec_path("crate::edge::pb::Codec");
    // Raw contents are shared with what was received, and not copied.
    // Maps have an order, so that the same message is always the same bytes.
    builder.bytes(".").btree_map(".").compile_fds(files)?;
    Ok(())
}
