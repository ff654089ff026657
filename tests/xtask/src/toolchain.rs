//! Ensures that the guests' compilation target is installed.
//!
//! rustup is tried first. If its servers are unreachable, the standard library is built from
//! Debian's packages ([`debian`]). If the target is installed, nothing is done.

mod debian;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run;

pub(crate) use debian::unpack as unpack_debian;

/// The compilation target of guests.
pub(crate) const TARGET: &str = "wasm32-wasip2";

/// Installs [`TARGET`] unless it is installed; an error says what was tried and what the user can
/// do.
pub(crate) fn ensure_target() -> Result<()> {
    let sysroot = Sysroot::in_use()?;
    if sysroot.has_target() {
        return Ok(());
    }
    let with_rustup = || {
        run::step(&format!("setup: installing {TARGET} with rustup"), || {
            install_with_rustup(&sysroot)
        })
    };
    let from_packages = || debian::install(&sysroot);
    let ways: [(&str, &dyn Fn() -> Result<()>); 2] =
        [("rustup", &with_rustup), ("Debian packages", &from_packages)];

    let mut reasons = String::new();
    for (name, install) in ways {
        match install() {
            Ok(()) if sysroot.has_target() => return Ok(()),
            Ok(()) => {
                reasons.push_str(&format!("\n- {name}: it succeeded but installed no library"))
            }
            Err(error) => reasons.push_str(&format!("\n- {name}: {error:#}")),
        }
    }
    bail!(
        "the standard library for {TARGET} is missing, and installing it failed:{reasons}\n\n\
         Install it with `rustup target add {TARGET}`, or install the Debian packages `rust-src` \
         (of exactly the version `rustc --version` says; see {suite}) and `wasi-libc`. \
         Then run this command again.",
        suite = debian::SUITE,
    )
}

/// The sysroot of a compiler.
struct Sysroot(PathBuf);

impl Sysroot {
    fn in_use() -> Result<Self> {
        let path = run::output(rustc().args(["--print", "sysroot"]))?;
        Ok(Self(PathBuf::from(path.trim_end())))
    }

    /// The folder of the installed targets.
    fn targets(&self) -> PathBuf {
        self.0.join("lib").join("rustlib")
    }

    /// Whether both Rust's standard library and the C library are installed.
    fn has_target(&self) -> bool {
        let libraries = self.targets().join(TARGET).join("lib");
        libraries.join("self-contained").join("crt1-command.o").is_file()
            && fs::read_dir(&libraries).is_ok_and(|entries| {
                entries.flatten().any(|entry| {
                    let name = entry.file_name();
                    let name = name.to_string_lossy();
                    name.starts_with("libstd-") && name.ends_with(".rlib")
                })
            })
    }
}

/// The compiler that cargo uses.
fn rustc() -> Command {
    Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

fn install_with_rustup(sysroot: &Sysroot) -> Result<()> {
    let managed = run::output(Command::new("rustup").args(["which", "rustc"]))?;
    // rustup may manage another toolchain, whose targets this compiler does not see.
    let managed = Path::new(managed.trim_end()).ancestors().nth(2).map(Path::canonicalize);
    let managed = managed
        .context("rustup prints no path of a compiler")?
        .context("cannot resolve the path of rustup's compiler")?;
    let used = sysroot.0.canonicalize().context("cannot resolve the sysroot")?;
    ensure!(managed == used, "the compiler in use is not the one rustup manages");

    let mut add = Command::new("rustup");
    add.args(["target", "add", TARGET]);
    if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
        add.arg("--toolchain").arg(toolchain);
    }
    run::output(&mut add)?;
    Ok(())
}
