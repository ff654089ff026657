use std::path::Path;

use guesthouse_tests::artifacts::{Misbehave, temporary_folder};
use guesthouse_tests::client::{self, DEMO_ADMIN_KEY};
use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

/// Two versions, of which the lower is stable.
fn setup(folder: &Path) -> Setup {
    let pack = |version| Misbehave { version, ..Misbehave::default() }.pack(folder);
    let artifacts = vec![pack("1.0.0"), pack("1.1.0")];
    let config =
        "[models.misbehave]\nsplit = { \"1.0.0\" = 1_000_000, \"1.1.0\" = 0 }\n".to_owned();
    Setup { artifacts, config, state: Some(folder.join("state")), ..Setup::default() }
}

fn stable(server: &Server) -> String {
    let model = server.admin("GET", "models/misbehave", &Value::Null).body;
    model["stable"].as_str().unwrap().to_owned()
}

fn assert_serves(server: &Server, version: &str) {
    let answer = server.post("/predict", &json!({"action": "echo"}));
    assert_eq!((answer.status, answer.header("x-model-version")), (200, Some(version)));
}

/// The status of a change; none if the server exits before it responds.
fn try_change(server: &Server, path: &str, body: &Value) -> Option<u16> {
    let url = format!("http://{}/admin/v1/models/misbehave/{path}", server.admin_address());
    client::try_send("POST", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], body.to_string().as_bytes())
}

#[test]
fn a_change_is_atomic_when_the_host_is_killed_at_any_step() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let (mut unacknowledged, mut acknowledged) = (0, 0);
    for step in 1.. {
        setup.failpoint = Some(format!("kill:{step}"));
        let Some(server) = Server::try_start(&setup) else { continue };
        let before = stable(&server);
        let is_first = before == "1.0.0";
        let (path, body, after) = if is_first {
            ("promote", json!({"version": "1.1.0"}), "1.1.0")
        } else {
            ("rollback", json!({}), "1.0.0")
        };
        let answered = try_change(&server, path, &body);
        drop(server);
        setup.failpoint = None;
        let server = Server::start(&setup);
        let is = stable(&server);
        match answered {
            Some(status) => {
                assert_eq!((status, is.as_str()), (200, after), "step {step}");
                acknowledged += 1;
            }
            None => {
                assert!(is == before || is == after, "step {step}: {is}");
                unacknowledged += 1;
            }
        }
        assert_serves(&server, &is);
        let history = server.admin("GET", "history?limit=1", &Value::Null).body;
        assert_eq!(history["entries"][0]["after"]["stable"], is.as_str(), "step {step}");
        if acknowledged == 2 {
            break;
        }
    }
    // A transaction has at least that many writes and syncs.
    assert!(unacknowledged >= 3, "{unacknowledged}");
}

#[test]
fn a_full_disk_rejects_changes_and_keeps_serving() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let next = Misbehave { version: "1.2.0", ..Misbehave::default() }.pack(folder.path());
    let next = std::fs::read(next).unwrap();
    let (mut refused, mut made) = (0, 0);
    for step in 1.. {
        setup.failpoint = Some(format!("full:{step}"));
        let Some(server) = Server::try_start(&setup) else { continue };
        let before = stable(&server);
        let (path, body) = match before.as_str() {
            "1.0.0" => ("promote", json!({"version": "1.1.0"})),
            _ => ("rollback", json!({})),
        };
        let answer = server.admin("POST", &format!("models/misbehave/{path}"), &body);
        assert_serves(&server, &stable(&server));
        if answer.status == 200 {
            made += 1;
        } else {
            assert_eq!((answer.status, answer.error_code()), (507, Some("insufficient_storage")));
            assert_eq!(stable(&server), before, "step {step}");
            refused += 1;
            let url = format!("http://{}/admin/v1/deploy", server.admin_address());
            let upload = client::send("POST", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], &next);
            assert_eq!((upload.status, upload.error_code()), (507, Some("insufficient_storage")));
        }
        let is = stable(&server);
        drop(server);
        // The disk has space again.
        setup.failpoint = None;
        let server = Server::start(&setup);
        assert_eq!(stable(&server), is, "step {step}");
        assert_serves(&server, &is);
        if made == 1 {
            break;
        }
    }
    assert!(refused >= 1, "{refused}");
}

#[test]
fn the_state_after_a_disk_error_survives_a_restart() {
    let folder = temporary_folder();
    let mut setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let (mut failed, mut made) = (0, 0);
    for step in 1.. {
        setup.failpoint = Some(format!("once:{step}"));
        let Some(server) = Server::try_start(&setup) else { continue };
        let change = |server: &Server| {
            let (path, body) = match stable(server).as_str() {
                "1.0.0" => ("promote", json!({"version": "1.1.0"})),
                _ => ("rollback", json!({})),
            };
            server.admin("POST", &format!("models/misbehave/{path}"), &body)
        };
        let before = stable(&server);
        let answer = change(&server);
        if answer.status == 200 {
            assert_ne!(stable(&server), before, "step {step}");
            made += 1;
        } else {
            assert_eq!(
                (answer.status, answer.error_code()),
                (500, Some("internal")),
                "step {step}"
            );
            failed += 1;
            // The disk works again, and so do changes.
            let again = change(&server);
            assert_eq!(again.status, 200, "step {step}: {again:?}");
        }
        let is = stable(&server);
        assert_serves(&server, &is);
        drop(server);
        setup.failpoint = None;
        let server = Server::start(&setup);
        assert_eq!(stable(&server), is, "step {step}");
        assert_serves(&server, &is);
        if made == 1 {
            break;
        }
    }
    assert!(failed >= 3, "{failed}");
}

#[test]
fn a_tampered_ledger_is_rejected() {
    let folder = temporary_folder();
    let setup = setup(folder.path());
    assert!(Server::start(&setup).stop().0.success());
    let path = folder.path().join("state/ledger.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    // Change every copy of the actor's name in the entries.
    let (from, to) = (b"\"actor\":\"repository\"", b"\"actor\":\"repositorY\"");
    let mut found = 0;
    for place in 0..bytes.len() - from.len() {
        if bytes[place..].starts_with(from) {
            bytes[place..place + to.len()].copy_from_slice(to);
            found += 1;
        }
    }
    assert!(found > 0);
    std::fs::write(&path, bytes).unwrap();
    assert!(Server::try_start(&setup).is_none());
}
