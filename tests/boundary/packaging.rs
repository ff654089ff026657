//! The examples for operators match the server. Whether systemd, Kubernetes and others accept them
//! is checked with their own tools by `cargo xtask conformance`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use guesthouse_tests::{Server, Setup, artifacts, client, environment};

/// The time that the server takes after its last request: responses to interrupted requests, and
/// the rest of the log.
const FINAL_LOG_SECONDS: u64 = 5;

/// Memory besides versions and compilers: the program, request bodies, and the kernel's buffers.
const OVERHEAD_MIB: u64 = 512;

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/packaging")
}

fn read(file: &str) -> String {
    fs::read_to_string(packaging().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// All files below the packaging folder.
fn files() -> Vec<String> {
    let mut files = Vec::new();
    for folder in fs::read_dir(packaging()).unwrap() {
        let folder = folder.unwrap().path();
        for file in fs::read_dir(&folder).into_iter().flatten() {
            let file = file.unwrap().path();
            files.push(file.strip_prefix(packaging()).unwrap().to_str().unwrap().to_owned());
        }
    }
    files.sort();
    files
}

/// The number after the first occurrence of `key`.
fn number(text: &str, key: &str) -> Option<u64> {
    let (_, rest) = text.split_once(key)?;
    let rest = rest.trim_start_matches(['=', ':', ' ']);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn guesthouse(arguments: &[String]) -> Result<String, String> {
    let output = Command::new(environment::host())
        .args(arguments)
        .env_clear()
        .output()
        .expect("the host program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The command lines of the program in a file, without the program's name.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let words = |line: &str| {
        line.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let mut lines = Vec::new();
    let mut rest = text.lines().map(str::trim);
    while let Some(line) = rest.next() {
        if let Some((_, arguments)) = line.split_once("=/usr/local/bin/guesthouse ") {
            lines.push(words(arguments));
        } else if let Some(list) = line.strip_prefix("args: [") {
            lines.push(words(list.trim_end_matches(']')));
        } else if line == "args:" {
            lines.push(
                rest.by_ref()
                    .map_while(|line| line.strip_prefix("- "))
                    .map(str::to_owned)
                    .collect(),
            );
        }
    }
    lines.retain(|line: &Vec<String>| {
        line.first().is_some_and(|word| word == "serve" || word == "config")
    });
    lines
}

#[test]
fn every_configuration_file_is_valid() {
    let configurations: Vec<_> =
        files().into_iter().filter(|file| file.ends_with(".toml")).collect();
    assert!(configurations.len() >= 3, "{configurations:?}");
    let check = |path: PathBuf| {
        let path = path.to_str().unwrap().to_owned();
        guesthouse(&["config", "check", "--config", &path].map(str::to_owned))
    };
    for file in &configurations {
        check(packaging().join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
        // The placeholders have the right form, too.
        let text: Vec<_> = read(file)
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.starts_with("[[") || key.contains(" = ") => key.to_owned(),
                _ => line.to_owned(),
            })
            .collect();
        // Each key is different.
        let mut digits = '0'..='9';
        let fill = |line: &String| match line.split_once('…') {
            Some((before, after)) => {
                let digit = digits.next().expect("few keys").to_string();
                format!("{before}{}{after}", digit.repeat(64))
            }
            None => line.clone(),
        };
        let filled = text.iter().map(fill).collect::<Vec<_>>().join("\n");
        let folder = artifacts::temporary_folder();
        let path = folder.path().join("guesthouse.toml");
        fs::write(&path, &filled).unwrap();
        check(path.clone()).unwrap_or_else(|why| panic!("{file}: {why}\n{filled}"));
        fs::write(&path, filled + "\nno_such_key = 1\n").unwrap();
        check(path).expect_err("an unknown key is rejected");
    }
}

#[test]
fn every_command_line_is_valid() {
    let mut found = 0;
    for file in files() {
        for mut line in command_lines(&read(&file)) {
            line.push("--help".to_owned());
            guesthouse(&line).unwrap_or_else(|why| panic!("{file}: {line:?}: {why}"));
            line.insert(line.len() - 1, "--no-such-option".to_owned());
            guesthouse(&line).expect_err("an unknown option is rejected");
            found += 1;
        }
    }
    assert!(found >= 4, "{found} command lines were found");
    let help = guesthouse(&["serve", "--help"].map(str::to_owned)).unwrap();
    let containerfile = read("container/Containerfile");
    let variables: BTreeSet<_> = containerfile
        .split_whitespace()
        .filter_map(|word| word.split_once('=').map(|(name, _)| name))
        .filter(|name| name.starts_with("GUESTHOUSE_"))
        .collect();
    assert!(variables.len() >= 4, "{variables:?}");
    for variable in variables {
        assert!(help.contains(variable), "the server has no variable {variable}");
    }
}

#[test]
fn ports_and_folders_match_the_configuration() {
    let (configuration, stateful) =
        (read("kubernetes/guesthouse.toml"), read("kubernetes/statefulset.yaml"));
    assert_eq!(
        number(&configuration, "\nlisten = \"0.0.0.0"),
        number(&stateful, "name: http\n              containerPort")
    );
    for name in ["grpc", "admin"] {
        let listens = number(&configuration, &format!("\n{name}_listen = \"0.0.0.0"));
        let opened = number(&stateful, &format!("name: {name}\n              containerPort"));
        assert!(listens.is_some() && listens == opened, "{name}");
    }
    let runtime = read("kserve/cluster-serving-runtime.yaml");
    let listens = number(&runtime, "--listen=0.0.0.0");
    assert!(listens.is_some());
    for key in ["containerPort", "path: /healthz\n          port", "path: /readyz\n          port"]
    {
        assert_eq!(number(&runtime, key), listens, "{key}");
    }
    let containerfile = read("container/Containerfile");
    let opened = number(&runtime, "--grpc-listen=0.0.0.0").unwrap();
    assert!(runtime.contains(&format!("- containerPort: {opened}\n")), "{opened}");
    for port in [
        number(&containerfile, "GUESTHOUSE_LISTEN=0.0.0.0"),
        number(&containerfile, "GUESTHOUSE_GRPC_LISTEN=0.0.0.0"),
        number(&containerfile, "GUESTHOUSE_ADMIN_LISTEN=0.0.0.0"),
    ] {
        let exposed = containerfile.lines().find(|line| line.starts_with("EXPOSE ")).unwrap();
        assert!(exposed.contains(&port.unwrap().to_string()), "{exposed}");
    }
    for (folder, writable) in [("/var/lib/guesthouse", true), ("/srv/guesthouse", false)] {
        assert!(stateful.contains(&format!("mountPath: {folder}\n")), "{folder}");
        let key = if writable { "state = " } else { "repository = " };
        assert!(configuration.contains(&format!("{key}\"{folder}")), "{folder}");
    }
    let unit = read("systemd/guesthouse.service");
    for line in read("systemd/guesthouse.toml").lines() {
        if let Some((_, folder)) = line.split_once("= \"/var/lib/") {
            let folder = folder.trim_end_matches('"');
            assert!(unit.contains(&format!(" {folder}")), "the unit does not create {folder}");
        }
    }
}

#[test]
fn stop_timeouts_exceed_the_drain_time() {
    let time = |configuration: &str| {
        let of = |key, default| number(configuration, &format!("\n{key}")).unwrap_or(default);
        // The server's defaults, if the file does not set them.
        of("linger_seconds", 3) + of("drain_seconds", 10) + FINAL_LOG_SECONDS
    };
    let grace = "terminationGracePeriodSeconds";
    for (file, key, configuration) in [
        ("systemd/guesthouse.service", "\nTimeoutStopSec", "systemd/guesthouse.toml"),
        ("kubernetes/statefulset.yaml", grace, "kubernetes/guesthouse.toml"),
        ("kserve/inference-service.yaml", grace, "kserve/guesthouse.toml"),
    ] {
        let allowed = number(&read(file), key).unwrap();
        let taken = time(&read(configuration));
        assert!(allowed > taken, "{file} allows {allowed} s for a shutdown of up to {taken} s");
    }
}

#[test]
fn memory_limits_fit_into_the_container() {
    for (file, configuration) in [
        ("kubernetes/statefulset.yaml", "kubernetes/guesthouse.toml"),
        ("kserve/cluster-serving-runtime.yaml", "kserve/guesthouse.toml"),
    ] {
        let (manifest, configuration) = (read(file), read(configuration));
        let (_, limits) = manifest.split_once("limits:").unwrap();
        let gibibytes = number(limits, "memory").unwrap();
        let of = |key: &str| number(&configuration, &format!("\n{key}")).unwrap();
        let used = of("memory_mib") + of("preinit_memory_mib") + OVERHEAD_MIB;
        assert!(used <= gibibytes << 10, "{file}: {used} MiB");
        assert!(of("instances") * of("instance_memory_mib") <= of("memory_mib"), "{file}");
    }
}

#[test]
fn probes_and_scrapes_request_existing_paths() {
    let server = Server::start(&Setup::toxicity());
    let mut asked = BTreeSet::new();
    for file in files() {
        for line in read(&file).lines() {
            let path = line.trim().split_once("path: /").map(|(_, path)| format!("/{path}"));
            asked.extend(path.filter(|_| !line.contains("mountPath")));
        }
    }
    assert!(asked.len() >= 3, "{asked:?}");
    for path in asked {
        let status = client::try_send("GET", &server.url(&path), &[], b"");
        assert_eq!(status, Some(200), "{path}");
    }
}

#[test]
fn the_container_uses_the_repositorys_compiler() {
    let toolchain = fs::read_to_string(packaging().join("../../rust-toolchain.toml")).unwrap();
    let version = toolchain.split("channel = \"").nth(1).unwrap().split('"').next().unwrap();
    let containerfile = read("container/Containerfile");
    assert!(containerfile.contains(&format!("/rust:{version}-")), "{version}");
    assert!(containerfile.contains(&format!("RUSTUP_TOOLCHAIN={version}\n")), "{version}");
}
