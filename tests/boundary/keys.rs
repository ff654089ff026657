use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY, DEMO_KEY, HttpResponse};
use guesthouse_tests::{DEADLINE, Server, Setup, environment};
use serde_json::{Value, json};

/// One small model, and a state folder that outlives its servers.
fn setup(folder: &Path) -> Setup {
    let artifacts = vec![Misbehave::default().pack(folder)];
    Setup { artifacts, state: Some(folder.join("state")), ..Setup::default() }
}

/// Creates a key; returns its id and its secret.
fn create(server: &Server, body: &Value) -> (String, String) {
    let answer = server.admin("POST", "keys", body);
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("KeyCreated")), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&answer.body["key"]["id"]), text(&answer.body["secret"]))
}

fn revoke(server: &Server, id: &str) -> HttpResponse {
    server.admin("DELETE", &format!("keys/{id}"), &Value::Null)
}

fn ask_with(server: &Server, path: &str, headers: &[(&str, &str)]) -> HttpResponse {
    client::send("POST", &server.url(path), headers, br#"{"text": "You are nice"}"#)
}

/// The status and the code of an error.
fn refusal(answer: &HttpResponse) -> (u16, &str) {
    (answer.status, answer.error_code().unwrap_or_else(|| panic!("{answer:?}")))
}

/// Sends a request on a keep-alive connection; returns the status.
fn predict_on(connection: &mut BufReader<TcpStream>, key: &str) -> u16 {
    let body = r#"{"action": "echo"}"#;
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.get_mut().write_all((head + body).as_bytes()).unwrap();
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert!(connection.read_line(&mut line).unwrap() > 0, "closed after {lines:?}");
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_lowercase()),
        }
    }
    assert!(!lines.contains(&"connection: close".to_owned()), "{lines:?}");
    let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    lines[0].split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_key_is_valid_across_crashes_until_revoked() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    let server = Server::start(&setup);
    let (id, key) = create(&server, &json!({"name": "ann", "scopes": ["predict:*"]}));
    let (_, other) = create(&server, &json!({"name": "bob", "scopes": ["predict:*"]}));
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut connection = BufReader::new(stream);
    assert_eq!(predict_on(&mut connection, &key), 200);
    let line = server.wait_for("the log line", |line| line["route"] == "/predict");
    assert_eq!(line["caller"], "ann");
    // The server is killed, as in a power failure.
    drop(server);
    let server = Server::start(&setup);
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut connection = BufReader::new(stream);
    assert_eq!(predict_on(&mut connection, &key), 200);
    let answer = revoke(&server, &id);
    assert_eq!((answer.status, &answer.body["changed"]), (200, &json!(true)), "{answer:?}");
    // The next request on the connection on which the key was valid.
    assert_eq!(predict_on(&mut connection, &key), 401);
    assert_eq!(predict_on(&mut connection, &other), 200);
    assert_eq!(revoke(&server, &id).body["changed"], false);
    drop(server);
    let server = Server::start(&setup);
    let status = |key: &str| ask_with(&server, "/predict", &[("X-API-Key", key)]).status;
    // This model expects another input, which is checked after the key.
    assert_eq!((status(&key), status(&other)), (401, 400));

    // Neither the disk nor the log contains a key, and no response contains a hash.
    let listed = server.admin("GET", "keys", &Value::Null).body;
    let state = |name: &str| {
        let keys = listed["keys"].as_array().unwrap();
        keys.iter().find(|key| key["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!(
        (state("ann"), state("bob"), state("demo")),
        ("revoked".into(), "active".into(), "active".into())
    );
    let history = server.admin("GET", "history?limit=3", &Value::Null).body;
    let operations: Vec<_> = history["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["operation"].as_str().unwrap(), entry["key"]["name"].as_str().unwrap()))
        .collect();
    assert_eq!(operations, [("revoke_key", "ann"), ("create_key", "bob"), ("create_key", "ann")]);
    let log = format!("{:?}", server.lines());
    for key in [&key, &other] {
        let hash = sha256(key);
        for (what, text) in
            [("list", &listed.to_string()), ("history", &history.to_string()), ("log", &log)]
        {
            assert!(!text.contains(&key[11..]) && !text.contains(&hash[..16]), "{what}: {text}");
        }
        assert!(!any_file_contains(&folder.path().join("state"), &key.as_bytes()[11..]));
        // The search finds what is there: the hash.
        assert!(any_file_contains(&folder.path().join("state"), hash.as_bytes()));
    }
}

fn sha256(text: &str) -> String {
    let mut command = Command::new("sh");
    let output = command.args(["-c", r#"printf %s "$0" | sha256sum"#, text]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn any_file_contains(folder: &Path, wanted: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return any_file_contains(&path, wanted);
        }
        let bytes = fs::read(path).unwrap();
        bytes.windows(wanted.len()).any(|window| window == wanted)
    })
}

#[test]
fn a_key_is_limited_to_its_scopes() {
    let server = Server::start(&Setup::text_direction());
    let make =
        |name: &str, scopes: &[&str]| create(&server, &json!({"name": name, "scopes": scopes})).1;
    let toxicity = make("toxicity", &["predict:toxicity"]);
    let all = make("all", &["predict:*"]);
    let admin = make("admin", &["admin"]);
    let send = |method: &str, path: &str, key: &str| {
        client::send(method, &server.url(path), &[("X-API-Key", key)], br#"{"text": "a"}"#)
    };
    for (key, path, status) in [
        (&toxicity, "/models/toxicity/predict", 200),
        (&toxicity, "/predict", 200),
        (&toxicity, "/models/text-direction/predict", 403),
        // A key without access to a model does not learn whether the model exists.
        (&toxicity, "/models/absent/predict", 403),
        (&all, "/models/toxicity/predict", 200),
        (&all, "/models/absent/predict", 404),
        (&admin, "/predict", 403),
    ] {
        let answer = send("POST", path, key);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(status != 403 || answer.error_code() == Some("forbidden"), "{answer:?}");
    }
    let models = |key: &str| {
        let models = send("GET", "/models", key).body["models"].clone();
        models.as_array().unwrap().iter().map(|model| model["model"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(models(&toxicity), ["toxicity"]);
    assert_eq!(models(&all), ["text-direction", "toxicity"]);
    for (path, mine, admins) in [
        ("/models", 200, 403),
        ("/models/toxicity", 200, 403),
        ("/models/toxicity/versions/1", 200, 403),
        ("/models/toxicity/resolve", 200, 403),
        ("/models/text-direction", 403, 403),
        ("/models/text-direction/versions/1", 403, 403),
        ("/models/text-direction/resolve", 403, 403),
    ] {
        let statuses = (send("GET", path, &toxicity).status, send("GET", path, &admin).status);
        assert_eq!(statuses, (mine, admins), "{path}");
    }
    let administer = |key: &str| {
        let url = format!("http://{}/admin/v1/keys", server.admin_address());
        let bearer = format!("Bearer {key}");
        client::send("GET", &url, &[("Authorization", &bearer)], b"").status
    };
    assert_eq!((administer(&admin), administer(&all), administer(DEMO_KEY)), (200, 403, 403));
    assert_eq!(administer("guesthouse_no"), 401);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.get(path).status, 200);
    }
    assert!(!server.metrics().is_empty());
}

#[test]
fn all_invalid_keys_get_the_same_401() {
    let server = Server::start(&Setup::toxicity());
    let (id, revoked) = create(&server, &json!({"name": "gone", "scopes": ["predict:*"]}));
    assert_eq!(revoke(&server, &id).status, 200);
    let (_, short) =
        create(&server, &json!({"name": "short", "scopes": ["predict:*"], "expires": "1s"}));
    server.eventually("the key expires", |server| {
        ask_with(server, "/predict", &[("X-API-Key", &short)]).status != 200
    });
    let mistyped = format!("{}x", &revoked[..revoked.len() - 1]);
    let mut messages = Vec::new();
    for key in [revoked.as_str(), &short, &mistyped, "unknown", ""] {
        let bearer = format!("Bearer {key}");
        for header in [("X-API-Key", key), ("Authorization", bearer.as_str())] {
            let answer = ask_with(&server, "/predict", &[header]);
            assert_eq!(refusal(&answer), (401, "unauthorized"), "{header:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            messages.push(answer.body["message"].clone());
        }
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(refusal(&ask_with(&server, "/predict", &[])), (401, "unauthorized"));
    // Either header, or both if they agree.
    let bearer = format!("bearer {DEMO_KEY}");
    let (plain, bearer) = (("X-API-Key", DEMO_KEY), ("Authorization", bearer.as_str()));
    for headers in [&[plain][..], &[bearer], &[plain, bearer]] {
        assert_eq!(ask_with(&server, "/predict", headers).status, 200, "{headers:?}");
    }
    let two = ask_with(&server, "/predict", &[("X-API-Key", "other"), bearer]);
    assert_eq!(refusal(&two), (400, "malformed_request"));
}

#[test]
fn creating_a_key_is_idempotent_and_validated() {
    let server = Server::start(&Setup::toxicity());
    let body = json!({"name": "ann", "scopes": ["predict:toxicity"], "expires": "90d",
        "rate": {"per_second": 5, "burst": 10}});
    let tried = server.admin("POST", "keys?dry_run=true", &body).body;
    assert_eq!(
        (&tried["dry_run"], &tried["key"]["id"], &tried["secret"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    let once = [("Idempotency-Key", "once")];
    let first = server.admin_with("POST", "keys?reason=new+team", &once, &body);
    assert_eq!(first.status, 200, "{first:?}");
    assert!(first.body["secret"].as_str().unwrap().starts_with("guesthouse_"));
    let again = server.admin_with("POST", "keys?reason=new+team", &once, &body);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!((&again.body["key"], &again.body["secret"]), (&first.body["key"], &Value::Null));
    let other =
        server.admin_with("POST", "keys", &once, &json!({"name": "b", "scopes": ["admin"]}));
    assert_eq!(refusal(&other), (422, "idempotency_mismatch"));
    assert_eq!(refusal(&server.admin("POST", "keys", &body)), (409, "conflict"));
    for name in ["demo", "demo-admin"] {
        let taken = server.admin("POST", "keys", &json!({"name": name, "scopes": ["admin"]}));
        assert_eq!(refusal(&taken), (409, "conflict"), "the configuration has a key of that name");
    }
    for bad in [
        json!({"name": "c"}),
        json!({"name": "c d", "scopes": ["admin"]}),
        json!({"name": "c", "scopes": []}),
        json!({"name": "c", "scopes": ["root"]}),
        json!({"name": "c", "scopes": ["admin"], "expires": "2020-01-01T00:00:00Z"}),
        json!({"name": "c", "scopes": ["admin"], "rate": {"per_second": 0}}),
        json!({"name": "c", "scopes": ["admin"], "secret": "mine"}),
    ] {
        assert_eq!(
            refusal(&server.admin("POST", "keys", &bad)),
            (400, "malformed_request"),
            "{bad}"
        );
    }
    let good = json!({"name": "c", "scopes": ["admin"]});
    for query in ["expected_revision=1", "promote=true"] {
        let answer = server.admin("POST", &format!("keys?{query}"), &good);
        assert_eq!(refusal(&answer), (400, "malformed_request"), "{query}");
    }
    assert_eq!(refusal(&revoke(&server, "absent")), (404, "not_found"));
    let id = first.body["key"]["id"].as_str().unwrap();
    let tried = server.admin("DELETE", &format!("keys/{id}?dry_run=true"), &Value::Null).body;
    assert_eq!((&tried["changed"], &tried["key"]["state"]), (&json!(true), &json!("revoked")));
    assert_eq!(
        revoke(&server, id).body["revision"].as_u64(),
        first.body["revision"].as_u64().map(|it| it + 1)
    );
    // The name is free again.
    assert_eq!(server.admin("POST", "keys", &body).status, 200);
}

#[test]
fn of_concurrent_keys_of_one_name_one_is_created() {
    let server = Server::start(&Setup::toxicity());
    for round in 0..5 {
        let body = json!({"name": format!("key-{round}"), "scopes": ["predict:*"]});
        let mut statuses = thread::scope(|scope| {
            let tries =
                [(); 4].map(|()| scope.spawn(|| server.admin("POST", "keys", &body).status));
            tries.map(|one| one.join().unwrap())
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409]);
    }
}

#[test]
fn a_revocation_is_atomic_under_any_failure() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    let make = |server: &Server, name: &str| {
        create(server, &json!({"name": name, "scopes": ["predict:*"]}))
    };
    let is_good = |server: &Server, key: &str| {
        match ask_with(server, "/predict", &[("X-API-Key", key)]).status {
            401 => false,
            // This model expects another input, which is checked after the key.
            _ => true,
        }
    };
    for failure in ["kill", "full", "once"] {
        let server = Server::start(&setup);
        let (mut id, mut key) = make(&server, failure);
        drop(server);
        let (mut undone, mut step) = (0, 0);
        loop {
            step += 1;
            setup.failpoint = Some(format!("{failure}:{step}"));
            let Some(server) = Server::try_start(&setup) else { continue };
            assert!(is_good(&server, &key));
            let url = format!("http://{}/admin/v1/keys/{id}", server.admin_address());
            let answered = client::try_send("DELETE", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], b"");
            let then = answered.map(|status| (status == 200, is_good(&server, &key)));
            drop(server);
            setup.failpoint = None;
            let server = Server::start(&setup);
            let is_good = is_good(&server, &key);
            match then {
                Some((true, good)) => {
                    assert!(!good && !is_good, "{failure}:{step}");
                    break;
                }
                Some((false, good)) => assert_eq!(good, is_good, "{failure}:{step}"),
                None => assert_eq!(failure, "kill"),
            }
            undone += 1;
            if !is_good {
                (id, key) = make(&server, &format!("{failure}-{step}"));
            }
        }
        assert!(undone >= if failure == "full" { 1 } else { 3 }, "{failure}: {undone}");
    }
}

/// Runs `guesthouse keys` with the demo's admin key.
fn operator(server: SocketAddr, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(environment::host());
    command.env_clear().env("GUESTHOUSE_ADMIN_KEY", DEMO_ADMIN_KEY);
    command.env("GUESTHOUSE_ADMIN_SERVER", format!("http://{server}")).arg("keys").args(arguments);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn commands_create_list_and_revoke_keys() {
    let server = Server::start(&Setup::toxicity());
    let run = |arguments: &[&str]| operator(server.admin_address(), arguments);
    let make =
        ["create", "ann", "--scope", "predict:toxicity", "--expires", "90d", "--rate", "100"];
    let (code, key, stderr) = run(&make);
    assert_eq!((code, key.lines().count()), (Some(0), 1), "{stderr}");
    let key = key.trim();
    assert!(stderr.contains("ann") && !stderr.contains(key), "{stderr}");
    assert_eq!(ask_with(&server, "/predict", &[("X-API-Key", key)]).status, 200);
    assert_eq!(run(&make).0, Some(4), "the name exists already");
    let (code, list, _) = run(&["list"]);
    assert_eq!(code, Some(0));
    let line = list.lines().find(|line| line.contains("ann")).unwrap();
    assert!(line.contains("active") && line.contains("predict:toxicity"), "{line}");
    assert!(!list.contains(&key[11..]) && !list.contains(&sha256(key)[..16]));
    let id = line.split(' ').next().unwrap();
    let (code, _, stderr) = run(&["revoke", id, "--reason", "lost"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(ask_with(&server, "/predict", &[("X-API-Key", key)]).status, 401);
    assert_eq!(run(&["revoke", "0123"]).0, Some(3));
    let once = ["create", "bob", "--idempotency-key", "once"];
    let (code, first, _) = run(&once);
    assert!(code == Some(0) && first.starts_with("guesthouse_"), "{first}");
    let (code, again, stderr) = run(&once);
    assert_eq!((code, again.as_str()), (Some(4), ""), "{stderr}");
    let (code, json, _) = run(&["create", "eve", "--scope", "admin", "--dry-run", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json["key"]["scopes"], &json["secret"]),
        (Some(0), &json!(["admin"]), &Value::Null)
    );
    for bad in [
        &["create"][..],
        &["create", "a b"],
        &["create", "a", "--scope", "predict"],
        &["create", "a", "--expires", "2020-01-01T00:00:00Z"],
        &["create", "a", "--rate", "0"],
        &["create", "a", "--burst", "1"],
        &["revoke", "../models"],
        &["generate", "a", "--expires", "soon"],
    ] {
        assert_eq!(run(bad).0, Some(2), "{bad:?}");
    }
}

#[test]
fn a_first_admin_key_is_generated_without_a_server() {
    let generate = |name: &str, more: &[&str]| {
        let arguments = [&["generate", name], more].concat();
        let (code, key, entry) = operator("127.0.0.1:1".parse().unwrap(), &arguments);
        assert_eq!(code, Some(0), "{entry}");
        assert!(!entry.contains(key.trim()), "{entry}");
        (key.trim().to_owned(), entry)
    };
    let (admin, one) = generate("root", &["--scope", "admin", "--expires", "1d"]);
    let (both, other) = generate(
        "both",
        &["--scope", "admin", "--scope", "predict:*", "--rate", "0.5", "--burst", "9"],
    );
    let mut setup = Setup::toxicity();
    setup.config = format!("{}\n{one}\n{other}", setup.config);
    let server = Server::start(&setup);
    let url = format!("http://{}/admin/v1/keys", server.admin_address());
    for key in [&admin, &both] {
        assert_eq!(client::send("GET", &url, &[("X-API-Key", key)], b"").status, 200);
    }
    assert_eq!(ask_with(&server, "/predict", &[("X-API-Key", &both)]).status, 200);
    assert_eq!(
        refusal(&ask_with(&server, "/predict", &[("X-API-Key", &admin)])),
        (403, "forbidden")
    );
}
