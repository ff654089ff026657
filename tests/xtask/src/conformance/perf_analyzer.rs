//! Triton's load generator: it reads the metadata of a model and sends requests in each of its
//! modes. The throughput is not judged.
//!
//! Its program needs a newer C library than Debian 12 has, so it runs with one that is unpacked
//! beside it. It does not find a model's statistics, because it expects versions to be integers,
//! and measures without them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::clients::with_fixtures;
use crate::bench::server::KEY;
use crate::python::Python;
use crate::run;
use crate::toolchain::unpack_debian;
use crate::workspace::Workspace;

const PACKAGE: &str = "perf-analyzer==2.60.0";

/// The platform of its only wheel.
const PLATFORM: &str = "manylinux_2_38_x86_64";

/// A Debian suite with libraries that are new enough, and the libraries that the program needs.
const SUITE: &str = "trixie";
const LIBRARIES: [&str; 5] = ["libc6", "libgcc-s1", "libssl3t64", "libstdc++6", "zlib1g"];

/// The number of requests of each run, so that every caller sends several.
const REQUESTS: &str = "200";

/// The arguments of each run, and whether it uses gRPC.
const RUNS: [(bool, &[&str]); 8] = [
    (false, &["-m", "simple"]),
    (false, &["-m", "simple", "-b", "4"]),
    (false, &["-m", "simple", "--input-tensor-format", "json", "--output-tensor-format", "json"]),
    (false, &["-m", "identity_fp32", "--shape", "INPUT0:8", "--async"]),
    (true, &["-m", "simple", "-b", "8"]),
    (true, &["-m", "simple", "--streaming", "--async"]),
    (true, &["-m", "simple", "--grpc-compression-algorithm", "deflate"]),
    (true, &["-m", "identity_bytes", "--shape", "INPUT0:4"]),
];

/// Checks that it measures the server in each mode.
pub(super) fn check(workspace: &Workspace, host: &Path) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        println!("{PACKAGE} does not support this machine");
        return Ok(());
    }
    let tool = Tool::install(workspace)?;
    with_fixtures(workspace, host, |server| {
        for (is_grpc, what) in RUNS {
            let (protocol, address, header) = if is_grpc {
                ("grpc", server.grpc_address(), format!("x-api-key:{KEY}"))
            } else {
                ("http", server.address(), format!("X-API-Key:{KEY}"))
            };
            let mut ask = tool.command();
            ask.args(what).args(["-i", protocol, "-u", &address.to_string(), "-H", &header]);
            ask.args(["--concurrency-range", "4", "--request-count", REQUESTS]);
            let output = run::output(&mut ask)?;
            let line = |word: &str| output.lines().find(|line| line.trim().starts_with(word));
            let throughput = line("Throughput:").context("the output has no throughput")?;
            let count = line("Request count:").context("the output has no request count")?;
            ensure!(count.trim().ends_with(REQUESTS), "not all requests were answered: {count}");
            println!("{protocol} {}: {}", what.join(" "), throughput.trim());
        }
        Ok(())
    })
}

/// The program and its libraries.
struct Tool {
    program: PathBuf,
    libraries: PathBuf,
}

impl Tool {
    fn install(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.tools().join("perf_analyzer");
        let root = folder.join("debian");
        let wheel = folder.join("wheel");
        let stamp = folder.join("installed");
        let wanted = format!("{PACKAGE} {SUITE} {}", LIBRARIES.join(" "));
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(Self::at(&wheel, &root));
        }
        let python = Python::install(workspace, "pip", &[])?;
        run::step(&format!("installing {PACKAGE} and libraries of {SUITE}"), || {
            for path in [&root, &wheel] {
                fs::create_dir_all(path).context("cannot create a folder for tools")?;
            }
            unpack_debian(SUITE, &LIBRARIES, &root)?;
            let mut pip = python.run("python");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            pip.args(["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--upgrade"]);
            run::output(pip.arg("--target").arg(&wheel).arg(PACKAGE))?;
            Ok(fs::write(&stamp, &wanted)?)
        })?;
        Ok(Self::at(&wheel, &root))
    }

    fn at(wheel: &Path, root: &Path) -> Self {
        let program = wheel.join("perf_analyzer/bin/perf_analyzer");
        Self { program, libraries: root.join("usr/lib/x86_64-linux-gnu") }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.libraries.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&self.libraries).arg(&self.program);
        command
    }
}
