use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::client;
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

/// One small model, and a state folder that outlives its servers.
fn setup(folder: &Path) -> Setup {
    let artifacts = vec![Misbehave::default().pack(folder)];
    Setup { artifacts, state: Some(folder.join("state")), ..Setup::default() }
}

fn ask(server: &Server, key: &str) -> u16 {
    let body = br#"{"action": "echo"}"#;
    client::send("POST", &server.url("/predict"), &[("X-API-Key", key)], body).status
}

fn create_key(server: &Server, name: &str) -> (String, String) {
    let body = json!({"name": name, "scopes": ["predict:*"]});
    let answer = server.admin("POST", "keys", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&answer.body["key"]["id"]), text(&answer.body["secret"]))
}

/// Makes a state folder whose last change was the revocation of the returned key.
fn make_state_with_revoked_key(setup: &Setup) -> String {
    let server = Server::start(setup);
    let (id, secret) = create_key(&server, "ann");
    assert_eq!(ask(&server, &secret), 200);
    assert_eq!(server.admin("DELETE", &format!("keys/{id}"), &Value::Null).status, 200);
    assert_eq!(ask(&server, &secret), 401);
    assert!(server.stop().0.success());
    secret
}

fn accept(setup: &Setup) -> Setup {
    Setup {
        artifacts: setup.artifacts.clone(),
        state: setup.state.clone(),
        arguments: vec!["--accept-ledger-loss".to_owned()],
        ..Setup::default()
    }
}

fn assert_start_fails(setup: &Setup) {
    let why = Server::startup_failure(setup);
    assert!(why.contains("--accept-ledger-loss"), "{why}");
}

fn last_operations(server: &Server) -> Vec<String> {
    let history = server.admin("GET", "history?limit=100", &Value::Null).body;
    let entries = history["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["operation"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_flipped_bit_never_restores_a_revoked_key() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let secret = make_state_with_revoked_key(&setup);
    let state = folder.path().join("state");
    let files = ["ledger.redb", "ledger.head"].map(|name| state.join(name));
    let whole = files.clone().map(|path| fs::read(path).unwrap());
    let (mut refused, mut served) = (0, 0);
    for (file, bytes) in files.iter().zip(&whole) {
        // The header with both commit slots, and bits spread over the whole file.
        let header = [9, 64, 72, 88, 136, 192, 200, 216, 264].map(|byte| byte * 8);
        let spread = (0..16).map(|place| place * bytes.len() * 8 / 16 + place * 7);
        for bit in header.into_iter().chain(spread) {
            let mut rotten = bytes.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            files.iter().zip(&whole).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
            fs::write(file, &rotten).unwrap();
            match Server::try_start(&setup) {
                None => {
                    refused += 1;
                    assert_eq!(&fs::read(file).unwrap(), &rotten, "a rejected file was changed");
                }
                Some(server) => {
                    served += 1;
                    assert_eq!(ask(&server, &secret), 401, "{file:?}, bit {bit}");
                    assert_eq!(last_operations(&server)[0], "revoke_key", "{file:?}, bit {bit}");
                }
            }
        }
    }
    assert!(refused >= 5 && served >= 5, "{refused} {served}");
}

#[test]
fn a_lost_ledger_is_rejected_until_accepted() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let secret = make_state_with_revoked_key(&setup);
    let path = folder.path().join("state/ledger.redb");
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_start_fails(&setup);
    fs::write(&path, b"").unwrap();
    assert_start_fails(&setup);
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_start_fails(&setup);
    let server = Server::start(&accept(&setup));
    assert_eq!(ask(&server, &secret), 401);
    assert!(last_operations(&server).contains(&"accept_ledger_loss".to_owned()));
    let (_, other) = create_key(&server, "bob");
    assert!(server.stop().0.success());
    // From then on, the server starts without the flag.
    let server = Server::start(&setup);
    assert_eq!((ask(&server, &secret), ask(&server, &other)), (401, 200));
}

#[test]
fn an_outdated_ledger_is_rejected_until_accepted() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let path = folder.path().join("state/ledger.redb");
    let server = Server::start(&setup);
    let (id, secret) = create_key(&server, "ann");
    assert!(server.stop().0.success());
    let old = fs::read(&path).unwrap();
    let server = Server::start(&setup);
    assert_eq!(server.admin("DELETE", &format!("keys/{id}"), &Value::Null).status, 200);
    assert!(server.stop().0.success());
    fs::write(&path, &old).unwrap();
    assert_start_fails(&setup);
    // Without the head file, the server cannot tell and refuses too.
    let head = folder.path().join("state/ledger.head");
    let noted = fs::read(&head).unwrap();
    fs::remove_file(&head).unwrap();
    assert_start_fails(&setup);
    fs::write(&head, noted).unwrap();
    let server = Server::start(&accept(&setup));
    assert_eq!(ask(&server, &secret), 401);
    let keys = server.admin("GET", "keys", &Value::Null).body;
    let ann = keys["keys"].as_array().unwrap().iter().find(|key| key["name"] == "ann").unwrap();
    assert_eq!(ann["state"], "revoked");
    assert_eq!(last_operations(&server)[0], "accept_ledger_loss");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn group_writable_state_is_rejected_with_a_chmod_command() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let state = folder.path().join("state");
    for name in ["ledger.redb", "ledger.head"] {
        assert_eq!(mode(&state.join(name)), 0o600, "{name}");
    }
    // The modes that Kubernetes sets for a volume with an `fsGroup`.
    let folders = [state.clone(), state.join("artifacts"), state.join("compiled")];
    folders.iter().for_each(|path| set_mode(path, 0o2770));
    for name in ["key", "ledger.redb"] {
        set_mode(&state.join(name), 0o660);
    }
    let why = Server::startup_failure(&setup);
    let paths: Vec<_> = folders.iter().cloned().chain([state.join("key")]).collect();
    let command: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let command = format!("chmod go-rwx {}", command.join(" "));
    assert!(why.contains(&command) && why.contains("mode 2770"), "{why}");
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    assert!(Server::start(&setup).stop().0.success());
    assert_eq!(mode(&state.join("ledger.redb")), 0o600);
}

/// Builds a library that, when preloaded, makes the clock show another time.
fn clock_library(folder: &Path, seconds: i64) -> PathBuf {
    let source = folder.join("clock.c");
    let code = format!(
        "#include <sys/syscall.h>\n#include <time.h>\n#include <unistd.h>\n\
         int clock_gettime(clockid_t clock, struct timespec *time) {{\n\
         if (clock != CLOCK_REALTIME) return syscall(SYS_clock_gettime, clock, time);\n\
         time->tv_sec = {seconds}LL; time->tv_nsec = 0; return 0; }}\n"
    );
    fs::write(&source, code).unwrap();
    let library = folder.join(format!("clock{seconds}.so"));
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.unwrap().success());
    library
}

#[test]
fn an_implausible_clock_is_an_error_not_a_panic() {
    let folder = temporary_folder();
    let setup = |seconds| {
        let library = clock_library(folder.path(), seconds).display().to_string();
        Setup { environment: vec![("LD_PRELOAD".to_owned(), library)], ..setup(folder.path()) }
    };
    for seconds in [-1, -86_400 * 365 * 20, 253_402_300_800] {
        let why = Server::startup_failure(&setup(seconds));
        assert!(why.contains("clock") && !why.contains("panicked"), "{seconds}: {why}");
    }
    // A machine without a battery-backed clock starts in the first hour of 1970.
    let server = Server::start(&setup(3600));
    let answer = server.post("/predict", &json!({"action": "echo"}));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Rewrites an artifact so that it names a version of the guest contract that is not compatible.
fn use_previous_contract(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let (from, to) = (b"@0.2.", b"@0.1.");
    let places: Vec<_> = (0..bytes.len() - from.len())
        .filter(|place| bytes[*place..].starts_with(b"guesthouse:model/"))
        .collect();
    for place in places {
        let end = (place + 64).min(bytes.len());
        let at = bytes[place..end].windows(from.len()).position(|window| window == from);
        if let Some(at) = at {
            bytes[place + at..place + at + to.len()].copy_from_slice(to);
        }
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_demo_keeps_the_state_of_another_contract() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let state = folder.path().join("state");
    let kept: Vec<_> = fs::read_dir(state.join("artifacts")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    kept.iter().for_each(|entry| use_previous_contract(&entry.as_ref().unwrap().path()));
    let ledger = fs::read(state.join("ledger.head")).unwrap();
    for _start in 0..2 {
        let server = Server::start(&setup);
        assert_eq!(server.post("/predict", &json!({"action": "echo"})).status, 200);
        assert!(server.stop().0.success());
    }
    let fresh = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("state-contract-") && path.join("ledger.redb").exists()
    };
    assert_eq!(fs::read_dir(folder.path()).unwrap().map(fresh).filter(|is| *is).count(), 1);
    assert_eq!(fs::read(state.join("ledger.head")).unwrap(), ledger);
}
