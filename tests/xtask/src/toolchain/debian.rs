//! Builds a target's standard library from Debian's packages and puts it into the sysroot.
//!
//! `rust-src` does not depend on the architecture or the suite of the machine. The packages are
//! downloaded from the machine's mirror, with apt's signature checks, into a temporary folder:
//! nothing is installed, and no privileges are needed if the sysroot belongs to the user. The
//! finished folder is renamed into the sysroot.

use std::collections::HashSet;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::{Sysroot, TARGET, rustc};
use crate::run;

/// The suite with current Rust releases.
pub(super) const SUITE: &str = "trixie-backports";

/// The keys of Debian's suites. Without the file, apt uses all trusted keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Describes where the libraries come from.
const ORIGIN_FILE: &str = "ORIGIN.txt";

/// Builds the target and installs it into `sysroot`.
pub(super) fn install(sysroot: &Sysroot) -> Result<()> {
    let compiler = Compiler::in_use()?;
    // Checked before the download and the build.
    drop(staging(sysroot)?);

    let work = tempfile::tempdir().context("cannot create a temporary folder")?;
    let sources = match Sources::installed(&compiler.release) {
        Some(sources) => sources,
        None => download(&compiler.release, work.path())?,
    };
    let libraries =
        run::step(&format!("setup: building the standard library for {TARGET}"), || {
            build(&compiler, &sources, &work.path().join("build"))
        })?;
    install_folder(sysroot, &sources, &libraries)
}

/// The version of the compiler in use.
struct Compiler {
    /// For example `1.95.0`.
    release: String,
    commit: String,
}

impl Compiler {
    fn in_use() -> Result<Self> {
        let text = run::output(rustc().arg("-vV"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::to_owned).with_context(|| format!("rustc prints no {name}"))
        };
        Ok(Self { release: field("release: ")?, commit: field("commit-hash: ")? })
    }
}

/// The sources of a standard library.
struct Sources {
    /// Rust's `library` folder.
    rust: PathBuf,
    /// The C library's object files and archives.
    libc: PathBuf,
    /// The packages and their versions.
    origin: String,
}

impl Sources {
    /// The sources below `root`, if both packages are unpacked there.
    fn below(root: &Path, release: &str, origin: String) -> Option<Self> {
        let rust = root.join(format!("usr/src/rustc-{release}/library"));
        let libc = root.join("usr/lib").join(TARGET);
        let complete = rust.join("Cargo.lock").is_file() && libc.join("libc.a").is_file();
        complete.then_some(Self { rust, libc, origin })
    }

    fn installed(release: &str) -> Option<Self> {
        Self::below(Path::new("/"), release, "the machine's own packages".to_owned())
    }
}

fn download(release: &str, work: &Path) -> Result<Sources> {
    let (apt, packages) =
        run::step(&format!("setup: looking for Rust {release} in Debian's {SUITE}"), || {
            find_packages(release, work)
        })?;
    let origin = packages.join(" and ").replace('=', " ");
    run::step(&format!("setup: downloading {origin}"), || {
        let folder = work.join("packages");
        fs::create_dir(&folder).context("cannot create a temporary folder")?;
        run::output(apt.command("apt-get").current_dir(&folder).arg("download").args(&packages))?;

        let root = work.join("root");
        fs::create_dir(&root).context("cannot create a temporary folder")?;
        for package in files(&folder)? {
            extract(&package, release, &root)?;
        }
        Sources::below(&root, release, origin.clone())
            .context("the packages do not contain the expected files")
    })
}

/// Unpacks the needed part of a package: all of `rust-src` is ten times as large and slow to
/// remove.
fn extract(package: &Path, release: &str, root: &Path) -> Result<()> {
    let name = package.file_name().unwrap_or_default().to_string_lossy();
    let wanted = if name.starts_with("rust-src_") {
        format!("./usr/src/rustc-{release}/library")
    } else {
        format!("./usr/lib/{TARGET}")
    };
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let archive = unpack.stdout.take().context("dpkg-deb has no output")?;
    run::output(
        Command::new("tar")
            .args(["--extract", "--exclude=library/vendor", "--directory"])
            .arg(root)
            .arg(wanted)
            .stdin(archive),
    )?;
    let status = unpack.wait().context("cannot wait for dpkg-deb")?;
    ensure!(status.success(), "dpkg-deb cannot read {name} ({status})");
    Ok(())
}

/// Finds a mirror with both packages; returns their names and versions.
fn find_packages(release: &str, work: &Path) -> Result<(Apt, Vec<String>)> {
    let mut reasons = Vec::new();
    for (number, mirror) in mirrors()?.iter().enumerate() {
        let attempt = || -> Result<(Apt, Vec<String>)> {
            let apt = Apt::new(work.join(format!("apt-{number}")), mirror, SUITE)?;
            run::output(apt.command("apt-get").arg("update"))?;
            // The upstream version, followed by Debian's revision after a separator.
            let rust = apt.newest("rust-src", |version| {
                version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['+', '-', '~']))
            })?;
            let libc = apt.newest("wasi-libc", |_| true)?;
            Ok((apt, vec![rust, libc]))
        };
        match attempt() {
            Ok(found) => return Ok(found),
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    ensure!(!reasons.is_empty(), "apt has no Debian mirror configured");
    bail!("{}", reasons.join("\n  "))
}

/// Unpacks packages of a suite into a folder, from which their programs can run.
pub(crate) fn unpack(suite: &str, packages: &[&str], folder: &Path) -> Result<()> {
    let work = tempfile::tempdir().context("cannot create a temporary folder")?;
    let mut reasons = Vec::new();
    for (number, mirror) in mirrors()?.iter().enumerate() {
        let attempt = || -> Result<()> {
            let apt = Apt::new(work.path().join(format!("apt-{number}")), mirror, suite)?;
            run::output(apt.command("apt-get").arg("update"))?;
            let mut download = apt.command("apt-get");
            run::output(download.current_dir(&apt.folder).arg("download").args(packages))?;
            for file in files(&apt.folder)? {
                if file.extension() == Some(OsStr::new("deb")) {
                    run::output(Command::new("dpkg-deb").arg("-x").arg(file).arg(folder))?;
                }
            }
            Ok(())
        };
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    ensure!(!reasons.is_empty(), "apt has no Debian mirror configured");
    bail!("{}", reasons.join("\n  "))
}

/// The mirrors of Debian's archive in apt's configuration, the likeliest first.
fn mirrors() -> Result<Vec<String>> {
    // Without downloaded lists, as in new containers, apt does not know the label of a mirror and
    // prints the placeholder instead.
    const LABEL: &str = "$(LABEL)";
    let format = format!("{LABEL} $(REPO_URI)");
    let mut mirrors = Vec::new();
    for (known, label) in [("yes", "Debian"), ("no", LABEL)] {
        let text = run::output(
            Command::new("apt-get")
                .args(["indextargets", &format!("--release-info={known}")])
                .args(["--format", &format, "Created-By: Packages"]),
        )?;
        for line in text.lines() {
            match line.rsplit_once(' ') {
                Some((said, address)) if said == label => mirrors.push(address.to_owned()),
                _ => {}
            }
        }
    }
    let mut seen = HashSet::new();
    mirrors.retain(|mirror| seen.insert(mirror.clone()));
    Ok(mirrors)
}

/// apt with the machine's settings (proxies, certificates) and its own sources and lists.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: PathBuf, mirror: &str, suite: &str) -> Result<Self> {
        let mut source = format!("Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n");
        if Path::new(KEYRING).exists() {
            source.push_str(&format!("Signed-By: {KEYRING}\n"));
        }
        let create = || {
            fs::create_dir_all(folder.join("lists/partial"))?;
            fs::create_dir_all(folder.join("cache/archives/partial"))?;
            fs::write(folder.join("debian.sources"), source)
        };
        create().with_context(|| format!("cannot write to {}", folder.display()))?;
        Ok(Self { folder })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (setting, path) in [
            ("Dir::Etc::SourceList", "debian.sources"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{setting}={}", self.folder.join(path).display()));
        }
        for setting in [
            "Dir::Etc::SourceParts=-",
            // apt's own user has no access to the temporary folder.
            "APT::Sandbox::User=root",
            // By default an unreachable mirror is only a warning.
            "APT::Update::Error-Mode=any",
            "Acquire::Languages=none",
            "Acquire::Retries=1",
            "Acquire::http::Timeout=20",
            "Acquire::https::Timeout=20",
        ] {
            command.args(["-o", setting]);
        }
        command
    }

    /// The newest accepted version of a package, as `package=version`.
    fn newest(&self, package: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let table = run::output(self.command("apt-cache").args(["madison", package]))?;
        // Lines of `package | version | source`, newest first.
        let mut versions = table.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        let version = versions.find(|version| wanted(version));
        let version =
            version.with_context(|| format!("{SUITE} has no matching version of {package}"))?;
        Ok(format!("{package}={version}"))
    }
}

/// Compiles the standard library; returns its files.
fn build(compiler: &Compiler, sources: &Sources, folder: &Path) -> Result<Vec<PathBuf>> {
    // `-Zbuild-std` builds the library for a crate, which may be empty. Dependencies come from
    // cargo's registry: Debian's copies lack object files that `wit-bindgen` links.
    const CRATE: &str = "placeholder";
    let write = || {
        fs::create_dir_all(folder.join("src"))?;
        fs::write(folder.join("src/lib.rs"), "")?;
        fs::write(
            folder.join("Cargo.toml"),
            format!("[package]\nname = \"{CRATE}\"\nedition = \"2024\"\n[workspace]\n"),
        )
    };
    write().with_context(|| format!("cannot write to {}", folder.display()))?;

    // Without bitcode, guests with link-time optimisation do not link. The paths are those of an
    // official build.
    let root = sources.rust.parent().unwrap_or(&sources.rust);
    let flags = format!(
        "-Cembed-bitcode=yes\x1f--remap-path-prefix={}=/rustc/{}",
        root.display(),
        compiler.commit,
    );
    let mut cargo = clean_cargo();
    cargo
        .current_dir(folder)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // A variable of cargo's own tests that reads the library from another folder than the
        // sysroot, which therefore never has a partial library.
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &sources.rust)
        .args(["build", "--release"])
        .arg("-Zbuild-std=std,panic_abort,panic_unwind,proc_macro")
        .args(["--target", TARGET, "--target-dir", "target"]);
    run::output(&mut cargo)?;

    let mut libraries = files(&folder.join("target").join(TARGET).join("release/deps"))?;
    let own = format!("lib{CRATE}-");
    libraries.retain(|path| {
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own));
        path.extension() == Some(OsStr::new("rlib")) && !ours
    });
    Ok(libraries)
}

/// Cargo without the environment variables that configure the build of this repository.
fn clean_cargo() -> Command {
    // Network settings and cargo's home are kept.
    const KEPT: [&str; 5] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    const REMOVED: [&str; 2] = ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER"];

    let mut cargo = run::cargo();
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let about_cargo =
            text.starts_with("CARGO_") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if about_cargo || REMOVED.contains(&&*text) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Assembles the target's folder beside its final place in the sysroot and renames it.
fn install_folder(sysroot: &Sysroot, sources: &Sources, libraries: &[PathBuf]) -> Result<()> {
    let staging = staging(sysroot)?;
    let new = staging.path().join(TARGET);
    let self_contained = new.join("lib").join("self-contained");
    fs::create_dir_all(&self_contained).context("cannot write to the sysroot")?;
    for library in libraries {
        copy_into(&new.join("lib"), library)?;
    }
    for file in files(&sources.libc)? {
        if matches!(file.extension().and_then(OsStr::to_str), Some("a" | "o")) {
            copy_into(&self_contained, &file)?;
        }
    }
    let origin = format!(
        "Built by `cargo xtask setup` from {}.\n\
         Remove this folder before you let rustup install the target.\n",
        sources.origin,
    );
    fs::write(new.join(ORIGIN_FILE), origin).context("cannot write to the sysroot")?;

    let place = sysroot.targets().join(TARGET);
    if place.exists() && !sysroot.has_target() {
        // An incomplete folder is moved away and removed with the staging folder.
        fs::rename(&place, staging.path().join("incomplete"))
            .context("cannot move the incomplete folder away")?;
    }
    match fs::rename(&new, &place) {
        // Another process was faster, with the same result.
        Err(_) if sysroot.has_target() => Ok(()),
        result => result.with_context(|| format!("cannot create {}", place.display())),
    }
}

/// A temporary folder on the file system of the sysroot, so that renaming works.
fn staging(sysroot: &Sysroot) -> Result<TempDir> {
    let folder = sysroot.targets();
    tempfile::Builder::new()
        .prefix(".setup-")
        .tempdir_in(&folder)
        .with_context(|| format!("cannot write to the sysroot {}", folder.display()))
}

fn copy_into(folder: &Path, file: &Path) -> Result<()> {
    let name = file.file_name().context("a file without a name")?;
    fs::copy(file, folder.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    list().with_context(|| format!("cannot list {}", folder.display()))
}
