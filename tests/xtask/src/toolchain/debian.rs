//! Builds a target's standard library from Debian's packages and puts it into the sysroot.
//!
//! `rust-src` is independent of the machine's architecture and can be unpacked on any Debian, so
//! the packages may come from a newer suite than the machine runs. They are downloaded through
//! the machine's own mirror, with apt's signature checks, but into a temporary folder: nothing is
//! installed, no list of the system changes, and no special right is needed as long as the
//! sysroot belongs to the user. The sysroot gets the finished folder in one rename.

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

/// The suite that carries current Rust releases.
pub(super) const SUITE: &str = "trixie-backports";

/// What signs Debian's suites, where the machine has it; else apt looks at all keys it trusts.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Beside the libraries, for whoever wonders where they come from.
const ORIGIN_FILE: &str = "ORIGIN.txt";

/// Builds the target and installs it into `sysroot`.
pub(super) fn install(sysroot: &Sysroot) -> Result<()> {
    let compiler = Compiler::in_use()?;
    // Found out now, not after the download and the build.
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
    put_in_place(sysroot, &sources, &libraries)
}

/// Who the compiler in use says it is.
struct Compiler {
    /// Such as `1.95.0`.
    release: String,
    commit: String,
}

impl Compiler {
    fn in_use() -> Result<Self> {
        let text = run::output(rustc().arg("-vV"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::to_owned).with_context(|| format!("rustc tells no {name}"))
        };
        Ok(Self { release: field("release: ")?, commit: field("commit-hash: ")? })
    }
}

/// What a standard library is made of.
struct Sources {
    /// Rust's `library` folder.
    rust: PathBuf,
    /// The C library's object files and archives.
    libc: PathBuf,
    /// The packages and their versions, for people.
    origin: String,
}

impl Sources {
    /// The sources below `root`, if both packages have been unpacked there.
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
            .context("the packages do not contain the files they did when this was written")
    })
}

/// Unpacks what is needed of a package: all of `rust-src` is ten times as much, and on slow disks
/// takes longer to remove than the library takes to build.
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
    let status = unpack.wait().context("dpkg-deb is lost")?;
    ensure!(status.success(), "dpkg-deb cannot read {name} ({status})");
    Ok(())
}

/// Finds a mirror that has both packages, and their exact names and versions.
fn find_packages(release: &str, work: &Path) -> Result<(Apt, Vec<String>)> {
    let mut reasons = Vec::new();
    for (number, mirror) in mirrors()?.iter().enumerate() {
        let attempt = || -> Result<(Apt, Vec<String>)> {
            let apt = Apt::new(work.join(format!("apt-{number}")), mirror, SUITE)?;
            run::output(apt.command("apt-get").arg("update"))?;
            // A version is upstream's release, then Debian's additions after a sign.
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

/// Unpacks packages of any suite into a folder, for programs that run from there.
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

/// The addresses of the mirrors this machine may hold Debian's archive on, the likeliest first.
fn mirrors() -> Result<Vec<String>> {
    // Before lists were downloaded (as in fresh containers) apt does not know whose mirror one is.
    // Asked without that knowledge, it leaves the label's name in the label's place.
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

/// apt with the machine's settings (proxies, certificates), but its own sources and lists.
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
            // apt's own user may not enter our temporary folder.
            "APT::Sandbox::User=root",
            // By default a mirror that cannot be reached is only a warning.
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

    /// The newest version of a package among those wanted, as `package=version`.
    fn newest(&self, package: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let table = run::output(self.command("apt-cache").args(["madison", package]))?;
        // Lines of `package | version | where from`, the newest version first.
        let mut versions = table.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        let version = versions.find(|version| wanted(version));
        let version = version.with_context(|| format!("{SUITE} has no fitting {package}"))?;
        Ok(format!("{package}={version}"))
    }
}

/// Compiles the standard library and returns its files.
fn build(compiler: &Compiler, sources: &Sources, folder: &Path) -> Result<Vec<PathBuf>> {
    // `-Zbuild-std` builds the library for some crate; an empty one will do. Its dependencies come
    // from cargo's registry: Debian's copies lack the object files that `wit-bindgen` links.
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

    // Without bitcode, every guest built with link-time optimisation fails to link. The paths are
    // those of an official build, which tools can map to sources and which tell nothing of us.
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
        // Cargo's own tests use this to place the library elsewhere than in the sysroot, which is
        // thus never seen half changed.
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

/// Cargo without what its environment says about how *this* repository is built.
fn clean_cargo() -> Command {
    // How to reach the network and where cargo's home is remain as the user set them.
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

/// Assembles the target's folder beside its place in the sysroot, then renames it.
fn put_in_place(sysroot: &Sysroot, sources: &Sources, libraries: &[PathBuf]) -> Result<()> {
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
        // Something incomplete is in the way. It goes with the staging folder.
        fs::rename(&place, staging.path().join("incomplete")).context("cannot clear the place")?;
    }
    match fs::rename(&new, &place) {
        // Another set-up was quicker, with the same result.
        Err(_) if sysroot.has_target() => Ok(()),
        result => result.with_context(|| format!("cannot create {}", place.display())),
    }
}

/// A temporary folder on the sysroot's own file system, so that renames work.
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
