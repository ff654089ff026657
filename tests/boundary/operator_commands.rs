use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use guesthouse_tests::artifacts::{Misbehave, replace_bytes, temporary_folder};
use guesthouse_tests::client::DEMO_ADMIN_KEY;
use guesthouse_tests::{Server, Setup, artifacts, environment};
use serde_json::{Value, json};
use tempfile::TempDir;

const KEY: &str = "a-key-of-these-tests";

/// A command of an operator with a key and an otherwise empty environment.
fn operator(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(environment::host());
    command
        .env_clear()
        .env("GUESTHOUSE_ADMIN_KEY", KEY)
        .env("GUESTHOUSE_ADMIN_SERVER", format!("http://{server}"))
        .args(arguments);
    command
}

/// Runs a command; returns its exit code and its standard error.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!stderr.contains(KEY), "the output contains the key: {stderr}");
    (status.code(), stderr)
}

/// An address at which nothing listens.
fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The head of a request, with lines in lower case.
fn head(connection: &TcpStream) -> Vec<String> {
    let lines = BufReader::new(connection).lines().map(|line| line.unwrap().to_lowercase());
    lines.take_while(|line| !line.is_empty()).collect()
}

fn value<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn an_unreachable_server_is_named() {
    let folder = artifacts::temporary_folder();
    let file = folder.path().join("a.wasm");
    fs::write(&file, "\0asm").unwrap();
    let server = unused_address();
    let commands: [&[&str]; 10] = [
        &["status"],
        &["history", "toxicity", "--limit", "3"],
        &["resolve", "toxicity", "^1"],
        &["shadow", "toxicity"],
        &["shadow", "toxicity", "--off"],
        &["promote", "toxicity", "2.0.0"],
        &["canary", "toxicity", "2.0.0", "--weight", "0.5%"],
        &["rollback", "toxicity", "--json"],
        &["undeploy", "toxicity", "1.0.0"],
        &["deploy", file.to_str().unwrap()],
    ];
    for arguments in commands {
        let (code, stderr) = run(&mut operator(server, arguments));
        assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(&format!("http://{server}")), "{arguments:?}: {stderr}");
        // Nothing was sent, so no retry with the same key is suggested.
        assert!(!stderr.contains("--idempotency-key"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn without_a_key_no_request_is_sent() {
    let folder = artifacts::temporary_folder();
    let file = folder.path().join("key");
    fs::write(&file, KEY).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let (open, missing) = (file.to_str().unwrap(), folder.path().join("missing"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = listener.local_addr().unwrap();

    let (code, stderr) = run(operator(server, &["status"]).env_remove("GUESTHOUSE_ADMIN_KEY"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("GUESTHOUSE_ADMIN_KEY") && stderr.contains("--key-file"), "{stderr}");
    for arguments in
        [["status", "--key-file", open], ["status", "--key-file", missing.to_str().unwrap()]]
    {
        let (code, stderr) = run(&mut operator(server, &arguments));
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(arguments[2]), "{stderr}");
    }
    assert!(listener.accept().is_err(), "a request was sent without a key");
}

#[test]
fn invalid_command_lines_exit_with_2() {
    let canary = |weight| ["canary", "toxicity", "2.0.0", "--weight", weight];
    for weight in ["", "ten", "-1%", "0.00001%", "101%", "1000001", "1e3", "0,5", "1.5ppm"] {
        let (code, stderr) = run(&mut operator(unused_address(), &canary(weight)));
        assert_eq!(code, Some(2), "{weight}: {stderr}");
    }
    // A bare number could mean percent or parts per million; the error names both.
    for (weight, readings) in [
        ("10", ["`10%`", "`10ppm`"]),
        ("1", ["`1.0`", "`1ppm`"]),
        ("100", ["`100%`", "`100ppm`"]),
        ("10.5", ["`10.5%`", "`10.5`"]),
        ("100000", ["`100000ppm`", "10 %"]),
    ] {
        let share = ["shadow", "toxicity", "2.0.0", "--share", weight];
        for arguments in [&canary(weight), &share] {
            let (code, stderr) = run(&mut operator(unused_address(), arguments));
            assert_eq!(code, Some(2), "{weight}: {stderr}");
            assert!(readings.iter().all(|reading| stderr.contains(reading)), "{weight}: {stderr}");
        }
    }
    let commands: [&[&str]; 9] = [
        &["promote", "toxicity"],
        &["promote", "toxicity", "2"],
        &["promote", "../toxicity", "2.0.0"],
        &["promote", "toxicity", "2.0.0", "--idempotency-key", "two words"],
        &["promote", "toxicity", "2.0.0", "--expected-revision", "-1"],
        &["shadow", "toxicity", "2.0.0", "--off"],
        &["shadow", "toxicity", "--share", "10%"],
        // A dry run without a change is rejected.
        &["shadow", "toxicity", "--dry-run"],
        &["status", "--server", "https://127.0.0.1:8002"],
    ];
    for arguments in commands {
        let (code, stderr) = run(&mut operator(unused_address(), arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
    }
}

#[test]
fn deploy_rejects_paths_that_are_not_files() {
    let folder = artifacts::temporary_folder();
    let pipe = folder.path().join("pipe.wasm");
    artifacts::make_pipe(&pipe);
    for path in [&folder.path().join("nothing.wasm"), &pipe, folder.path()] as [&Path; 3] {
        let path = path.to_str().unwrap();
        let (code, stderr) = run(&mut operator(unused_address(), &["deploy", path]));
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(path), "{stderr}");
    }
}

#[test]
fn a_lost_change_is_retried_with_the_same_key() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let connections = thread::spawn(move || {
        let mut keys = Vec::new();
        // The last connection is made by the test itself.
        loop {
            let head = head(&listener.accept().unwrap().0);
            match value(&head, "idempotency-key") {
                Some(key) => keys.push(key.to_owned()),
                None => return keys,
            }
        }
    });
    let (code, stderr) = run(&mut operator(server, &["promote", "toxicity", "2.0.0"]));
    assert_eq!(code, Some(1), "{stderr}");
    TcpStream::connect(server).unwrap();
    let keys = connections.join().unwrap();
    assert!(keys.len() > 1 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert!(stderr.contains(&format!("--idempotency-key {}", keys[0])), "{stderr}");
}

#[test]
fn a_key_is_sent_to_the_named_server_only() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let other = format!("http://{}", elsewhere.local_addr().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n");
    let named = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let head = head(&connection);
        connection.write_all(answer.as_bytes()).unwrap();
        value(&head, "x-api-key").map(str::to_owned)
    });
    let mut command = operator(server, &["status"]);
    let (code, stderr) = run(command.env("http_proxy", &other).env("HTTP_PROXY", &other));
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(named.join().unwrap().as_deref(), Some(KEY));
    assert!(elsewhere.accept().is_err(), "a request went to another server");
}

/// The output and the exit code of a command against a real server.
#[derive(Debug)]
struct CommandOutput {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl CommandOutput {
    fn json(&self) -> Value {
        serde_json::from_str(&self.output).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

/// Runs a command against this server with the demo's admin key.
fn ask(server: &Server, arguments: &[&str]) -> CommandOutput {
    ask_with(server, DEMO_ADMIN_KEY, arguments)
}

fn ask_with(server: &Server, key: &str, arguments: &[&str]) -> CommandOutput {
    let url = format!("http://{}", server.admin_address());
    let mut command = Command::new(environment::host());
    command.env_clear().env("GUESTHOUSE_ADMIN_KEY", key).args(arguments).args(["--server", &url]);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let result = CommandOutput {
        code: status.code(),
        output: String::from_utf8(stdout).unwrap(),
        errors: String::from_utf8(stderr).unwrap(),
    };
    assert!(!format!("{result:?}").contains(key), "the output contains the key: {result:?}");
    result
}

/// The same with an expected exit code.
fn expect(server: &Server, code: i32, arguments: &[&str]) -> CommandOutput {
    let result = ask(server, arguments);
    assert_eq!(result.code, Some(code), "{arguments:?}: {result:?}");
    result
}

/// A server of the misbehaving guest, and an artifact that is not deployed yet.
fn server() -> (Server, TempDir, PathBuf) {
    let folder = temporary_folder();
    let first = Misbehave::default().pack(folder.path());
    let server = Server::start(&Setup { artifacts: vec![first], ..Setup::default() });
    let next = Misbehave { version: "1.1.0", ..Misbehave::default() }.pack(folder.path());
    (server, folder, next)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn assert_prints(result: &CommandOutput, words: &[&str]) {
    for word in words {
        assert!(result.output.contains(word), "{word:?} is not in {result:?}");
    }
}

/// The operations in the history, newest first.
fn operations(server: &Server) -> Vec<Value> {
    let history = expect(server, 0, &["history", "misbehave", "--json"]).json();
    let entries = history["entries"].as_array().unwrap();
    entries.iter().map(|entry| entry["operation"].clone()).collect()
}

#[test]
fn commands_deploy_canary_promote_and_roll_back() {
    let (server, _folder, next) = server();
    let deployed = expect(&server, 0, &["deploy", text(&next)]);
    for step in ["store", "verify", "contract", "prove", "replay", "publish"] {
        let is_step = |line: &str| line.starts_with(step) && line.ends_with(" ms");
        assert!(deployed.errors.lines().any(is_step), "{step} is not in {deployed:?}");
    }
    assert_prints(&deployed, &["misbehave@1.1.0 is deployed (", "1 golden example", "as it did"]);
    let status = expect(&server, 0, &["status"]);
    assert_prints(&status, &["stable 1.0.0 100 %", "1.1.0    ready", "1.0.0    ready"]);
    let canary =
        expect(&server, 0, &["canary", "misbehave", "1.1.0", "--weight", "10%", "--reason", "try"]);
    assert_prints(&canary, &["after   stable 1.0.0 90 %, canary 1.1.0 10 %"]);
    assert_prints(&expect(&server, 0, &["resolve", "misbehave"]), &["1.0.0  split  90 %", "10 %"]);
    let named = expect(&server, 0, &["resolve", "misbehave", "canary"]);
    assert_prints(&named, &["misbehave@1.1.0 would answer (channel)"]);
    // The key `alice` selects a version by the split.
    let sticky = expect(&server, 0, &["resolve", "misbehave", "--key", "alice"]);
    assert_prints(&sticky, &["would answer (split)"]);
    let shadow = expect(&server, 0, &["shadow", "misbehave", "1.1.0", "--share", "0.5%"]);
    assert_prints(&shadow, &["shadow 1.1.0 0.5 %"]);
    assert_prints(&expect(&server, 0, &["shadow", "misbehave"]), &["1.1.0", "5000"]);
    let off = expect(&server, 0, &["shadow", "misbehave", "--off"]);
    assert!(!off.output.lines().last().unwrap().contains("shadow"), "{off:?}");
    let promoted = expect(&server, 0, &["promote", "misbehave", "1.1.0"]);
    assert_prints(&promoted, &["Promoted", "after   stable 1.1.0 100 %"]);
    let back = expect(&server, 0, &["rollback", "misbehave"]);
    assert_prints(&back, &["RolledBack", "after   stable 1.0.0 100 %"]);
    let gone = expect(&server, 0, &["undeploy", "misbehave", "1.1.0"]);
    assert_prints(&gone, &["Undeployed"]);

    let history = expect(&server, 0, &["history", "misbehave", "--limit", "7"]);
    let lines: Vec<_> = history.output.lines().collect();
    let done = ["undeploy", "rollback", "promote", "shadow", "shadow", "canary", "deploy"];
    assert_eq!(lines.len(), done.len(), "{lines:#?}");
    for (line, operation) in lines.iter().zip(done) {
        assert!(line.contains(operation) && line.contains("demo-admin"), "{line}");
    }
    assert!(lines[5].ends_with("try"), "{}", lines[5]);
}

#[test]
fn the_json_flag_prints_only_json() {
    let (server, _folder, next) = server();
    let json = |arguments: &[&str]| {
        let result = expect(&server, 0, &[arguments, &["--json"]].concat());
        assert_eq!(result.errors, "", "{arguments:?}");
        result.json()
    };
    let deployed = json(&["deploy", text(&next)]);
    assert_eq!(
        (&deployed["state"], &deployed["result"]["version"]),
        (&json!("done"), &json!("1.1.0"))
    );
    assert_eq!(json(&["status"])["models"][0]["model"], "misbehave");
    assert_eq!(json(&["status", "misbehave"])["stable"], "1.0.0");
    for (weight, parts) in
        [("10%", 100_000), ("0.1", 100_000), ("100000ppm", 100_000), ("0", 0), ("1ppm", 1)]
    {
        let canary = json(&["canary", "misbehave", "1.1.0", "--weight", weight]);
        assert_eq!(canary["after"]["candidates"], json!({"1.1.0": parts}), "{weight}");
    }
    assert_eq!(json(&["shadow", "misbehave", "1.1.0"])["after"]["shadow"]["share"], 1_000_000);
    assert_eq!(json(&["shadow", "misbehave"])["shadow"]["version"], "1.1.0");
    assert_eq!(json(&["shadow", "misbehave", "--off"])["after"]["shadow"], Value::Null);
    assert_eq!(json(&["promote", "misbehave", "1.1.0"])["status"], "Promoted");
    assert_eq!(json(&["resolve", "misbehave", "stable"])["version"], "1.1.0");
    assert_eq!(json(&["rollback", "misbehave"])["after"]["stable"], "1.0.0");
    assert_eq!(json(&["undeploy", "misbehave", "1.1.0"])["changed"], true);
    assert_eq!(json(&["history", "--limit", "1"])["entries"][0]["operation"], "undeploy");
    // With `--json`, an error is JSON on standard output too.
    let refused = expect(&server, 3, &["promote", "misbehave", "9.0.0", "--json"]);
    assert_eq!(refused.json()["error_code"], "not_found");
}

#[test]
fn exit_codes_distinguish_errors_from_conflicts() {
    let (server, folder, next) = server();
    let junk = folder.path().join("junk.wasm");
    fs::write(&junk, "no artifact").unwrap();
    let patch = Misbehave { version: "1.0.1", ..Misbehave::default() }.pack(folder.path());
    replace_bytes(&patch, r#""max_batch_size":8"#, r#""max_batch_size":9"#);

    let refused: [(&[&str], &str); 6] = [
        (&["status", "nothing"], "not_found"),
        (&["promote", "misbehave", "9.9.9"], "not_found"),
        (&["rollback", "nothing"], "not_found"),
        (&["resolve", "misbehave", "^2"], "not_found"),
        (&["deploy", text(&junk)], "unacceptable_artifact"),
        (&["deploy", text(&patch)], "contract_violation"),
    ];
    for (arguments, code) in refused {
        let result = expect(&server, 3, arguments);
        assert!(
            result.errors.contains(code) && result.output.is_empty(),
            "{arguments:?}: {result:?}"
        );
    }
    let stranger = ask_with(&server, "an-unknown-key", &["status"]);
    assert_eq!(stranger.code, Some(3), "{stranger:?}");
    assert!(stranger.errors.contains("unauthorized"), "{stranger:?}");
    let contract = expect(&server, 3, &["deploy", text(&patch)]);
    assert!(contract.errors.contains("minor  one call takes 9 rows, not 8"), "{contract:?}");

    expect(&server, 4, &["rollback", "misbehave"]);
    expect(&server, 4, &["canary", "misbehave", "1.0.0", "--weight", "10%"]);
    expect(&server, 0, &["deploy", text(&next), "--promote"]);
    // A downgrade, the stable version, and the version that a rollback would need.
    expect(&server, 4, &["promote", "misbehave", "1.0.0"]);
    expect(&server, 4, &["undeploy", "misbehave", "1.1.0"]);
    expect(&server, 4, &["undeploy", "misbehave", "1.0.0"]);
    replace_bytes(&next, r#""done": "echo""#, r#""done": "ohce""#);
    // The same version with other bytes.
    expect(&server, 4, &["deploy", text(&next)]);
    expect(&server, 2, &["canary", "misbehave", "1.1.0"]);

    // The server has stopped.
    let url = format!("http://{}", server.admin_address());
    assert!(server.stop().0.success());
    let mut command = Command::new(environment::host());
    command.env_clear().env("GUESTHOUSE_ADMIN_KEY", DEMO_ADMIN_KEY);
    let status = command.args(["status", "--server", &url]).output().unwrap().status;
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_dry_run_shows_the_outcome_and_changes_nothing() {
    let (server, folder, next) = server();
    expect(&server, 0, &["deploy", text(&next)]);
    let later = Misbehave { version: "1.2.0", ..Misbehave::default() }.pack(folder.path());
    let before = expect(&server, 0, &["status", "--json"]).json();
    let history = operations(&server);
    let trials: [(&[&str], &[&str]); 6] = [
        (&["deploy", text(&later)], &["misbehave@1.2.0 would be deployed"]),
        (&["deploy", text(&later), "--promote"], &["after   stable 1.2.0 100 %"]),
        (&["canary", "misbehave", "1.1.0", "--weight", "25%"], &["canary 1.1.0 25 %"]),
        (&["shadow", "misbehave", "1.1.0"], &["shadow 1.1.0 100 %"]),
        (&["promote", "misbehave", "1.1.0"], &["after   stable 1.1.0 100 %"]),
        (&["undeploy", "misbehave", "1.1.0"], &["Undeployed"]),
    ];
    for (arguments, words) in trials {
        let result = expect(&server, 0, &[arguments, &["--dry-run"]].concat());
        assert_prints(&result, words);
        assert_prints(&result, &["a dry run"]);
        assert_eq!(expect(&server, 0, &["status", "--json"]).json(), before, "{arguments:?}");
    }
    // A dry run of an invalid change fails.
    expect(&server, 4, &["rollback", "misbehave", "--dry-run"]);
    assert_eq!(operations(&server), history);
}

#[test]
fn an_outdated_expected_revision_is_a_conflict() {
    let (server, _folder, next) = server();
    let revision = || {
        let model = expect(&server, 0, &["status", "misbehave", "--json"]).json();
        model["revision"].as_u64().unwrap()
    };
    let seen = revision().to_string();
    let stale = expect(&server, 4, &["deploy", text(&next), "--expected-revision", "0"]);
    assert!(stale.errors.contains("revision_conflict"), "{stale:?}");
    expect(&server, 0, &["deploy", text(&next), "--expected-revision", &seen]);
    let changed = revision();
    for expected in [&seen, &(changed + 1).to_string()] {
        let arguments = ["promote", "misbehave", "1.1.0", "--expected-revision", expected];
        let stale = expect(&server, 4, &arguments);
        assert!(stale.errors.contains("revision_conflict"), "{stale:?}");
    }
    assert_eq!(revision(), changed);
    let seen = changed.to_string();
    expect(&server, 0, &["promote", "misbehave", "1.1.0", "--expected-revision", &seen]);
    assert!(revision() > changed);
}

#[test]
fn repeating_an_idempotency_key_changes_once() {
    const NOTE: &str = "this was done before with the same idempotency key";
    let (server, _folder, next) = server();
    let twice = |arguments: &[&str], key: &str| {
        let arguments = [arguments, &["--idempotency-key", key]].concat();
        let first = expect(&server, 0, &arguments);
        assert!(!first.errors.contains(NOTE), "{first:?}");
        let done = operations(&server);
        let second = expect(&server, 0, &arguments);
        assert!(second.errors.contains(NOTE), "{second:?}");
        assert_eq!((&second.output, operations(&server)), (&first.output, done));
    };
    twice(&["deploy", text(&next)], "deploy-1");
    twice(&["promote", "misbehave", "1.1.0"], "promote-1");
    // A replayed response changes nothing.
    twice(&["rollback", "misbehave"], "rollback-1");
    let again = ["promote", "misbehave", "1.1.0", "--idempotency-key", "promote-1"];
    assert!(expect(&server, 0, &again).errors.contains(NOTE));
    assert_eq!(expect(&server, 0, &["status", "misbehave", "--json"]).json()["stable"], "1.0.0");
    let other = ["undeploy", "misbehave", "1.1.0", "--idempotency-key", "promote-1"];
    let other = expect(&server, 3, &other);
    assert!(other.errors.contains("idempotency_mismatch"), "{other:?}");
    let done = operations(&server);
    assert_eq!(done[..3], [json!("rollback"), json!("promote"), json!("deploy")]);
}

#[test]
fn a_reason_is_stored_verbatim_and_shown_escaped() {
    const REASON: &str = "x\x1b]0;y\x07\nerror: forged \u{202e}z";
    let (server, _folder, next) = server();
    expect(&server, 0, &["deploy", text(&next), "--reason", REASON]);
    let people = expect(&server, 0, &["history", "misbehave", "--limit", "1"]);
    let programs = expect(&server, 0, &["history", "misbehave", "--limit", "1", "--json"]);
    for result in [&people, &programs] {
        assert!(result.output.contains("error: forged"), "{result:?}");
        assert!(!result.output.contains(['\x1b', '\x07', '\u{202e}']), "{result:?}");
    }
    assert_eq!(people.output.lines().count(), 1);
    assert_eq!(programs.json()["entries"][0]["reason"], REASON);
}

#[test]
fn status_shows_why_a_version_failed() {
    let folder = temporary_folder();
    let patch = Misbehave { version: "1.0.1", ..Misbehave::default() }.pack(folder.path());
    replace_bytes(&patch, r#""max_batch_size":8"#, r#""max_batch_size":9"#);
    let artifacts = vec![Misbehave::default().pack(folder.path()), patch];
    let server = Server::start(&Setup { artifacts, ..Setup::default() });
    for arguments in [&["status"][..], &["status", "misbehave"]] {
        let status = expect(&server, 0, arguments);
        assert_prints(&status, &["1.0.1    failed", "failed at contract", "stable 1.0.0 100 %"]);
    }
}
