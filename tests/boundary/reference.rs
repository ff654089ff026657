use std::fs;
use std::path::Path;
use std::process::Command;

use guesthouse_tests::artifacts::temporary_folder;
use guesthouse_tests::client::DEMO_ADMIN_KEY;
use guesthouse_tests::{DEMO_KEY, Server, Setup, client, environment};
use serde_json::Value;

fn guesthouse(arguments: &[&str]) -> String {
    let output = Command::new(environment::host()).args(arguments).env_clear().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_part_of_the_reference_is_printed() {
    for (part, rows) in [
        ("configuration", &["| `body_bytes` | integer, bytes | `8388608` |", "## `[[keys]]`"][..]),
        ("errors", &["| `overloaded` | 503 | UNAVAILABLE |"]),
        ("metrics", &["| `guesthouse_requests_total` | counter |"]),
        ("command-line", &["## `guesthouse keys create`", "--accept-ledger-loss"]),
        ("admin-openapi", &["\"/admin/v1/models/{model}/promote\""]),
    ] {
        let text = guesthouse(&["reference", part]);
        for row in rows {
            assert!(text.contains(row), "{part} does not contain {row}:\n{text}");
        }
        assert_eq!(text, guesthouse(&["reference", part]), "{part} differs from run to run");
    }
    assert!(!guesthouse(&["reference", "command-line"]).contains("preinit-child"));
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = guesthouse(&["completions", shell]);
        for word in ["undeploy", "expected-revision"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
}

#[test]
fn manual_pages_are_printed_or_written_to_a_folder() {
    let page = guesthouse(&["man"]);
    assert!(page.contains(".TH guesthouse 1") && page.contains("guesthouse\\-deploy(1)"), "{page}");
    let folder = temporary_folder();
    let pages = folder.path().join("man");
    assert_eq!(guesthouse(&["man", "--output", pages.to_str().unwrap()]), "");
    for name in ["guesthouse.1", "guesthouse-serve.1", "guesthouse-keys-create.1"] {
        let page = fs::read_to_string(pages.join(name)).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
}

fn admin_document(server: &Server) -> Value {
    let url = format!("http://{}/openapi.json", server.admin_address());
    let answer = client::send("GET", &url, &[("X-API-Key", DEMO_ADMIN_KEY)], b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[test]
fn every_endpoint_of_the_admin_api_is_described() {
    let server = Server::start(&Setup::toxicity());
    let document = admin_document(&server);
    assert_eq!(document["servers"][0]["url"], ".");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/server/src/admin.rs");
    let source = fs::read_to_string(source).unwrap();
    let model = "/admin/v1/models/{model}";
    let routes = source.split(".route(").skip(1).map(|rest| {
        let (route, handlers) = rest.split_once(", ").unwrap();
        let route = route.trim_start_matches("&format!(").trim_matches(['"', ')']);
        let route = route.replace("{model}/models", "/models").replace("{{version}}", "{version}");
        let route =
            if route == "model" { model.to_owned() } else { route.replace("{model}", model) };
        (route.replace(&format!("/admin/v1/models/{model}"), model), handlers)
    });
    let routes: Vec<_> = routes.filter(|(route, _)| route.starts_with("/admin/")).collect();
    assert!(routes.len() >= 14, "{routes:?}");
    for (route, handlers) in routes {
        let handlers = handlers.split(")\n").next().unwrap();
        for method in ["get", "post", "put", "delete"] {
            let is_served = handlers.contains(&format!("{method}("));
            let is_described = document["paths"][&route][method].is_object();
            assert_eq!(is_served, is_described, "{method} {route}");
        }
    }
}

#[test]
fn the_admin_listener_has_a_page_and_a_document() {
    let server = Server::start(&Setup::toxicity());
    let url = |path: &str| format!("http://{}{path}", server.admin_address());
    let page = client::http().build().unwrap().get(url("/docs")).send().unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.text().unwrap().contains("docs/docs.js"));
    for key in [None, Some(DEMO_KEY)] {
        let headers: Vec<_> = key.into_iter().map(|key| ("X-API-Key", key)).collect();
        let answer = client::send("GET", &url("/openapi.json"), &headers, b"");
        assert!([401, 403].contains(&answer.status), "{answer:?}");
    }
}
