use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use guesthouse_tests::{artifacts, environment};

const KEY: &str = "a-key-of-these-tests";

/// A command of an operator who has a key, and nothing else in the environment.
fn operator(server: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(environment::host());
    command
        .env_clear()
        .env("GUESTHOUSE_ADMIN_KEY", KEY)
        .env("GUESTHOUSE_ADMIN_SERVER", format!("http://{server}"))
        .args(arguments);
    command
}

/// The exit code, and what was said on standard error.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!said.contains(KEY), "a key was shown: {said}");
    (status.code(), said)
}

/// An address at which nobody listens any more.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The head of a request, lines in lower case.
fn head(connection: &TcpStream) -> Vec<String> {
    let lines = BufReader::new(connection).lines().map(|line| line.unwrap().to_lowercase());
    lines.take_while(|line| !line.is_empty()).collect()
}

fn value<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let folder = artifacts::temporary_folder();
    let file = folder.path().join("a.wasm");
    fs::write(&file, "\0asm").unwrap();
    let server = nobody();
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
        let (code, said) = run(&mut operator(server, arguments));
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.contains(&format!("http://{server}")), "{arguments:?}: {said}");
        // Nothing was sent, so there is nothing to try again with the same key.
        assert!(!said.contains("--idempotency-key"), "{arguments:?}: {said}");
    }
}

#[test]
fn without_a_key_nobody_is_asked() {
    let folder = artifacts::temporary_folder();
    let file = folder.path().join("key");
    fs::write(&file, KEY).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let (open, missing) = (file.to_str().unwrap(), folder.path().join("missing"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = listener.local_addr().unwrap();

    let (code, said) = run(operator(server, &["status"]).env_remove("GUESTHOUSE_ADMIN_KEY"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("GUESTHOUSE_ADMIN_KEY") && said.contains("--key-file"), "{said}");
    for arguments in
        [["status", "--key-file", open], ["status", "--key-file", missing.to_str().unwrap()]]
    {
        let (code, said) = run(&mut operator(server, &arguments));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(arguments[2]), "{said}");
    }
    assert!(listener.accept().is_err(), "somebody was asked without a key");
}

#[test]
fn a_command_line_that_makes_no_sense_is_said_to_be_so() {
    let canary = |weight| ["canary", "toxicity", "2.0.0", "--weight", weight];
    for weight in ["", "ten", "-1%", "0.5", "0.00001%", "101%", "1000001", "1e3"] {
        let (code, said) = run(&mut operator(nobody(), &canary(weight)));
        assert_eq!(code, Some(2), "{weight}: {said}");
    }
    let commands: [&[&str]; 9] = [
        &["promote", "toxicity"],
        &["promote", "toxicity", "2"],
        &["promote", "../toxicity", "2.0.0"],
        &["promote", "toxicity", "2.0.0", "--idempotency-key", "two words"],
        &["promote", "toxicity", "2.0.0", "--expected-revision", "-1"],
        &["shadow", "toxicity", "2.0.0", "--off"],
        &["shadow", "toxicity", "--share", "10%"],
        // Nothing would be changed, so there would be nothing to try out.
        &["shadow", "toxicity", "--dry-run"],
        &["status", "--server", "https://127.0.0.1:8001"],
    ];
    for arguments in commands {
        let (code, said) = run(&mut operator(nobody(), arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
    }
}

#[test]
fn what_is_no_file_is_not_deployed() {
    let folder = artifacts::temporary_folder();
    let pipe = folder.path().join("pipe.wasm");
    artifacts::make_pipe(&pipe);
    for path in [&folder.path().join("nothing.wasm"), &pipe, folder.path()] as [&Path; 3] {
        let path = path.to_str().unwrap();
        let (code, said) = run(&mut operator(nobody(), &["deploy", path]));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(path), "{said}");
    }
}

#[test]
fn a_lost_change_is_sent_again_as_the_same_and_then_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    let connections = thread::spawn(move || {
        let mut keys = Vec::new();
        // The last one comes from the test itself.
        loop {
            let head = head(&listener.accept().unwrap().0);
            match value(&head, "idempotency-key") {
                Some(key) => keys.push(key.to_owned()),
                None => return keys,
            }
        }
    });
    let (code, said) = run(&mut operator(server, &["promote", "toxicity", "2.0.0"]));
    assert_eq!(code, Some(1), "{said}");
    TcpStream::connect(server).unwrap();
    let keys = connections.join().unwrap();
    assert!(keys.len() > 1 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert!(said.contains(&format!("--idempotency-key {}", keys[0])), "{said}");
}

#[test]
fn a_key_goes_to_the_server_that_was_named_and_nowhere_else() {
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
    let (code, said) = run(command.env("http_proxy", &other).env("HTTP_PROXY", &other));
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(named.join().unwrap().as_deref(), Some(KEY));
    assert!(elsewhere.accept().is_err(), "somebody else was asked");
}
