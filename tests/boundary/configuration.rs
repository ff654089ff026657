use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use guesthouse_tests::artifacts::{run_host, temporary_folder};
use guesthouse_tests::client::send;
use guesthouse_tests::{Server, Setup, Signal, environment};
use serde_json::{Value, json};

fn check(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(environment::host());
    command.args(["config", "check"]).args(arguments).envs(variables.iter().copied());
    command.output().unwrap()
}

#[test]
fn config_check_validates_without_serving() {
    let folder = temporary_folder();
    let file = folder.path().join("guesthouse.toml");
    let path = file.to_str().unwrap();
    fs::write(&file, "listen = \"127.0.0.1:1\"\n[limits]\nbatch_rows = 5\n").unwrap();
    assert!(check(&["--config", path], &[]).status.success());
    assert!(check(&[], &[]).status.success(), "the configuration file is optional");
    for (arguments, variables, word) in [
        (&["--config", path, "--set", "limits.batch_rows=0"][..], &[][..], "limits.batch_rows"),
        (&["--config", path, "--set", "limits.rows=1"], &[], "rows"),
        (&["--config", path], &[("GUESTHOUSE__LIMITS__BATCH_ROWS", "0")], "limits.batch_rows"),
        (&["--config", path], &[("GUESTHOUSE__LIMIT__X", "0")], "limit"),
        (&["--config", "absent.toml"], &[], "absent.toml"),
        (&[], &[("GUESTHOUSE_LISTEN", "nowhere")], "listen"),
        (
            &["--set", "tls.certificate=absent.pem", "--set", "tls.key=absent.pem"],
            &[],
            "absent.pem",
        ),
    ] {
        let output = check(arguments, variables);
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {variables:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(word), "{error}");
    }
    // The command line takes precedence.
    let good = check(&["--set", "limits.batch_rows=7"], &[("GUESTHOUSE__LIMITS__BATCH_ROWS", "0")]);
    assert!(good.status.success());
    let listen = [("GUESTHOUSE_LISTEN", "nowhere")];
    assert!(check(&["--set", "listen=127.0.0.1:1"], &listen).status.success());
    assert!(check(&["--listen", "127.0.0.1:1", "--demo"], &[]).status.success());
    fs::write(&file, "[limits]\nbatch_rows = 5\nfoo = 1\n").unwrap();
    let error = String::from_utf8(check(&["--config", path], &[]).stderr).unwrap();
    assert!(error.contains("line 3"), "{error}");
    assert!(run_host(&["config", "--help"]).status.success());
}

#[test]
fn a_reload_applies_valid_and_ignores_invalid_files() {
    let setup = Setup::toxicity();
    let server = Server::start(&setup);
    let batch = json!({"texts": ["a", "b", "c"]});
    let status = || server.post("/v1/batch_predict", &batch).status;
    let share = |selector: &str| {
        let answer = server.send("GET", &format!("/models/toxicity/resolve{selector}"), &[], b"");
        answer.body["matches"][0]["share"].clone()
    };
    assert_eq!((status(), share("")), (200, json!(900_000)));

    let reload = |text: &str, message: &str| {
        let before = server.lines().len();
        fs::write(server.config(), text).unwrap();
        server.signal(Signal::HUP);
        server.wait_for_after(before, message, |line| line["message"] == message)
    };
    let bad = "configuration not reloaded: the last valid one stays";
    for text in ["nonsense", "[limits]\nbatch_rows = 0\n"] {
        reload(text, bad);
        assert_eq!((status(), share("")), (200, json!(900_000)));
    }
    let split = setup.config.replace("900_000", "600_000").replace("100_000", "400_000");
    assert_ne!(split, setup.config);
    let line = reload(
        &format!("{split}\n[limits]\nbatch_rows = 2\nqueued_batches = 7\n"),
        "configuration reloaded",
    );
    assert_eq!(line["needs_restart"], "models, limits");
    assert_eq!((status(), share("")), (422, json!(600_000)));
    let line = reload(&split, "configuration reloaded");
    assert_eq!((status(), &line["needs_restart"]), (200, &json!("")));
}

/// The listeners, by flag, variable and key.
const LISTENERS: [(&str, &str, &str); 3] = [
    ("--listen", "GUESTHOUSE_LISTEN", "listen"),
    ("--grpc-listen", "GUESTHOUSE_GRPC_LISTEN", "grpc_listen"),
    ("--admin-listen", "GUESTHOUSE_ADMIN_LISTEN", "admin_listen"),
];

#[test]
fn a_listener_address_may_contain_a_host_name() {
    let folder = temporary_folder();
    let file = folder.path().join("guesthouse.toml");
    for (flag, variable, key) in LISTENERS {
        for (address, code) in [
            ("localhost:9000", Some(0)),
            ("localhost:0", Some(0)),
            ("[::1]:9000", Some(0)),
            ("localhost", Some(1)),
            (":9000", Some(1)),
            ("localhost:http", Some(1)),
            ("0:9000", Some(1)),
            ("no-such-host.invalid:9000", Some(1)),
        ] {
            fs::write(&file, format!("{key} = {address:?}\n")).unwrap();
            let from_file = check(&["--config", file.to_str().unwrap()], &[]);
            let from_variable = check(&[], &[(variable, address)]);
            let from_flag = check(&[flag, address], &[]);
            for output in [&from_file, &from_variable] {
                assert_eq!(output.status.code(), code, "{key} {address}: {output:?}");
            }
            // A malformed flag is a usage error, with another exit code.
            let is_good = from_flag.status.success();
            assert_eq!(is_good, code == Some(0), "{flag} {address}: {from_flag:?}");
        }
    }
}

#[test]
fn a_listener_binds_every_address_of_its_host_name() {
    let host = Some("localhost:0".to_owned());
    let server = Server::start(&Setup { host, ..Setup::toxicity() });
    for (message, logged) in [
        ("listening", server.address()),
        ("grpc listening", server.grpc_address()),
        ("admin listening", server.admin_address()),
    ] {
        let lines = server.lines();
        let lines = lines.iter().filter(|line| line["message"] == message);
        let bound: BTreeSet<SocketAddr> =
            lines.map(|line| line["address"].as_str().unwrap().parse().unwrap()).collect();
        // The name may resolve to addresses that this machine does not have.
        let ours = |address: &SocketAddr| TcpListener::bind((address.ip(), 0)).is_ok();
        let named = ("localhost", logged.port()).to_socket_addrs().unwrap();
        let named: BTreeSet<_> = named.filter(ours).collect();
        assert!(!named.is_empty() && bound == named, "{message}: {bound:?} {named:?}");
        for address in named {
            TcpStream::connect(address).unwrap();
        }
    }
    let health = format!("http://localhost:{}/healthz", server.address().port());
    assert_eq!(send("GET", &health, &[], b"").status, 200);
    server.assert_healthy();
    assert!(server.stop().0.success());
}

#[test]
fn listeners_that_share_a_port_are_rejected() {
    let free = "127.0.0.1:0";
    for (listen, grpc, admin, named) in [
        ("127.0.0.1:9000", "127.0.0.1:9001", "127.0.0.1:9002", None),
        (free, free, free, None),
        ("127.0.0.1:9000", "127.0.0.1:9000", free, Some("grpc_listen")),
        ("127.0.0.1:9000", "off", "127.0.0.1:9000", Some("admin_listen")),
        (free, "127.0.0.1:9000", "127.0.0.1:9000", Some("admin_listen")),
        ("0.0.0.0:9000", "127.0.0.1:9000", free, Some("grpc_listen")),
        ("127.0.0.1:9000", free, "0.0.0.0:9000", Some("admin_listen")),
        ("[::]:9000", "127.0.0.1:9000", free, Some("grpc_listen")),
        ("localhost:9000", "127.0.0.1:9000", free, Some("grpc_listen")),
    ] {
        let flags =
            ["--listen", listen, "--grpc-listen", grpc, "--admin-listen", admin].map(str::to_owned);
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let output = check(&flags, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), named.is_none(), "{flags:?}: {stderr}");
        let Some(named) = named else { continue };
        assert!(stderr.contains(named), "{flags:?}: {stderr}");
        let output = run_host(&[&["serve"][..], &flags].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("listening"), "{output:?}");
    }
    // The admin listener's default address conflicts only if the listener is opened, which takes an
    // admin key.
    assert!(check(&["--listen", "127.0.0.1:8002"], &[]).status.success());
    assert!(!check(&["--listen", "127.0.0.1:8002", "--demo"], &[]).status.success());
    assert!(!check(&["--listen", "127.0.0.1:8001"], &[]).status.success());
}

#[test]
fn a_split_accepts_units_and_rejects_bare_percentages() {
    let folder = temporary_folder();
    let file = folder.path().join("guesthouse.toml");
    for (stable, canary, is_good) in [
        ("900_000", "100_000", true),
        ("\"90%\"", "\"10%\"", true),
        ("\"0.9\"", "\"100000ppm\"", true),
        ("\"90%\"", "100_000", true),
        ("90", "10", false),
        ("\"90\"", "\"10\"", false),
        ("0.9", "0.1", false),
        ("\"90%\"", "\"20%\"", false),
    ] {
        let split = format!("{{ \"1.0.0\" = {stable}, \"2.0.0\" = {canary} }}");
        fs::write(&file, format!("[models.toxicity]\nsplit = {split}\n")).unwrap();
        let output = check(&["--config", file.to_str().unwrap()], &[]);
        assert_eq!(output.status.success(), is_good, "{split}: {output:?}");
    }
}

/// A control group that is removed when it is dropped.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// Creates a group with these limits; none if this process may not.
    fn make(folder: PathBuf, limits: &[(&str, &str)]) -> Option<Self> {
        fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        let mut set = limits.iter().map(|(file, limit)| write_existing(&group.0.join(file), limit));
        set.all(|done| done.is_ok()).then_some(group)
    }

    /// Nested groups: the outer one is limited to 300 MiB, the inner one to more, and together they
    /// may use one of two processors.
    fn nested() -> Option<Vec<Self>> {
        let name = format!("guesthouse-test-{}", std::process::id());
        let at = |hierarchy: &str| Path::new("/sys/fs/cgroup").join(hierarchy).join(&name);
        let (outer, inner) = ("314572800", "524288000");
        if let Some(group) = Self::make(at(""), &[("memory.max", outer), ("cpu.max", "max")]) {
            write_existing(&group.0.join("cgroup.subtree_control"), "+memory +cpu").ok()?;
            let limits = [("memory.max", inner), ("cpu.max", "100000 100000")];
            let inner = Self::make(group.0.join("inner"), &limits)?;
            return Some(vec![inner, group]);
        }
        let memory = Self::make(at("memory"), &[("memory.limit_in_bytes", outer)])?;
        let inner = Self::make(memory.0.join("inner"), &[("memory.limit_in_bytes", inner)])?;
        let quota = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")];
        let cpu = Self::make(at("cpu"), &quota)?;
        Some(vec![inner, cpu, memory])
    }
}

/// Writes to a file of a control group, and fails if there is none of that name.
fn write_existing(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Removal fails only if creation failed.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The resources that a server without a configuration reports when it runs in these groups.
fn resources(groups: &[ControlGroup]) -> Value {
    let folder = temporary_folder();
    // In version 2, a group with subgroups contains no processes; in version 1 it need not.
    let is_inner = |group: &&ControlGroup| {
        !groups.iter().any(|other| other.0 != group.0 && other.0.starts_with(&group.0))
    };
    let enter = groups.iter().filter(is_inner);
    let enter: String =
        enter.map(|group| format!("echo $$ > '{}/cgroup.procs' && ", group.0.display())).collect();
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(r#"{enter}exec "$0" "$@""#)).arg(environment::host());
    command.args(["serve", "--log-format", "json", "--listen", "127.0.0.1:0", "--grpc-listen"]);
    command.args(["off", "--state"]).arg(folder.path().join("state"));
    command.current_dir(folder.path());
    let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let lines = lines.map_while(io::Result::ok).map(|line| serde_json::from_str(&line).unwrap());
    let found = lines.into_iter().find(|line: &Value| line["message"] == "resources");
    server.kill().unwrap();
    server.wait().unwrap();
    found.expect("the server logs its resources")
}

#[test]
fn a_server_respects_the_limits_of_its_control_group() {
    let free = resources(&[]);
    assert!(free["cores"].as_u64() >= Some(1) && free["memory_mib"].as_u64() > Some(300), "{free}");
    let Some(groups) = ControlGroup::nested() else {
        eprintln!("skipped: this process may not create control groups");
        return;
    };
    let limited = resources(&groups);
    let [cores, memory, threads] =
        ["cores", "memory_mib", "threads_per_version"].map(|key| limited[key].as_u64());
    assert_eq!((cores, memory, threads), (Some(1), Some(300), Some(1)), "{limited}");
}
