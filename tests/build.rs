//! Makes a client of the host's gRPC service.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../host/server/proto");
    let files = protox::compile(["inference.proto"], ["../host/server/proto"])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(files)?;
    Ok(())
}
