use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use guesthouse_tests::{Server, Setup};
use serde_json::{Value, json};

fn document(server: &Server, path: &str) -> Value {
    let answer = server.send("GET", path, &[], b"");
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

/// Collects every `$ref` in a document.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(elements) => elements.iter().for_each(|element| references(element, found)),
        _ => {}
    }
}

fn operations(document: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .flat_map(|(path, methods)| methods.as_object().unwrap().values().map(move |it| (path, it)))
}

#[test]
fn the_openapi_document_is_complete() {
    let server = Server::start(&Setup::text_direction());
    let document = document(&server, "/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 5, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let mut names = BTreeSet::new();
    let tags: BTreeSet<_> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str()).collect();
    for (path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(names.insert(id), "{id} twice");
        assert!(tags.contains(&operation["tags"][0].as_str()), "{path}");
        assert!(operation["responses"]["500"].is_object(), "{path}");
    }
    for path in ["/predict", "/v1/predict", "/v1/batch_predict", "/models/text-direction/predict"] {
        assert!(document["paths"][path]["post"].is_object(), "{path}");
    }
    let path = "/models/text-direction/versions/1.0.0/predict";
    let content = &document["paths"][path]["post"]["requestBody"]["content"];
    for media_type in ["application/json", "multipart/form-data", "application/octet-stream"] {
        assert!(content[media_type].is_object(), "{content}");
    }
}

/// A new endpoint must be described in the OpenAPI document.
#[test]
fn every_route_is_in_the_openapi_document() {
    let server = Server::start(&Setup::toxicity());
    let document = document(&server, "/openapi.json");
    let edge = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("host/server/src");
    let read = |file| fs::read_to_string(edge.join(file)).unwrap();
    let source = read("edge.rs") + &read("edge/oip.rs");
    let routes: Vec<_> = source
        .split(".route(")
        .skip(1)
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
        // The files of the documentation page.
        .filter(|route| !route.starts_with("/docs/"))
        .collect();
    assert!(routes.len() >= 27, "{routes:?}");
    for route in routes {
        let path = route.replace("/models/{model}", "/models/toxicity");
        let path = path.replace("/repository/models/toxicity", "/repository/models/{model}");
        assert!(document["paths"][&path].is_object(), "{route} is not described");
    }
}

#[test]
fn a_model_has_its_own_openapi_document() {
    let server = Server::start(&Setup::text_direction());
    let document = document(&server, "/models/toxicity/openapi.json");
    for (path, _) in operations(&document) {
        let own = ["/models/toxicity", "/v2/models/toxicity"];
        assert!(own.iter().any(|own| path.starts_with(own)), "{path}");
    }
    assert!(operations(&document).count() >= 5);
    let missing = server.send("GET", "/models/absent/openapi.json", &[], b"");
    assert_eq!(missing.error_code(), Some("not_found"));
    for path in ["/openapi.json", "/models/toxicity/openapi.json"] {
        assert_eq!(server.get(path).status, 401, "the document contains model names");
    }
}

#[test]
fn request_and_response_bodies_have_schemas() {
    let server = Server::start(&Setup::toxicity());
    let schema = document(&server, "/models/toxicity/versions/^1/schema");
    assert_eq!(schema["version"], "1.0.0");
    let text = &schema["request"]["properties"]["text"];
    assert_eq!((&text["minLength"], &text["maxLength"]), (&json!(1), &json!(2000)));
    assert_eq!(schema["request"]["required"], json!(["text"]));
    assert_eq!(schema["request"]["additionalProperties"], false);
    assert_eq!(schema["response"]["properties"]["label"]["enum"], json!(["clean", "toxic"]));
    let answer = server.post("/v1/predict", &json!({"text": "You are nice"})).body;
    let actual: BTreeSet<_> = answer.as_object().unwrap().keys().collect();
    let documented: BTreeSet<_> =
        schema["response"]["properties"].as_object().unwrap().keys().collect();
    assert_eq!(actual, documented);
    for what in ["request", "response", "batch_request", "batch_response"] {
        assert_eq!(schema[what]["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }
}

#[test]
fn errors_are_problem_json_on_request() {
    let server = Server::start(&Setup::toxicity());
    let accept = |value| [("Accept", value)];
    for (method, path, body, status, code) in [
        ("POST", "/v1/predict", &br#"{"text": 1}"#[..], 400, "malformed_request"),
        ("POST", "/absent", b"", 404, "not_found"),
        ("GET", "/v1/predict", b"", 405, "method_not_allowed"),
        ("POST", "/v1/predict", br#"{"text": " "}"#, 422, "unacceptable_input"),
    ] {
        let plain = server.send(method, path, &accept("application/json"), body);
        assert_eq!(plain.header("content-type"), Some("application/json"));
        let problem = server.send(method, path, &accept("application/problem+json"), body);
        assert_eq!(problem.header("content-type"), Some("application/problem+json"));
        let body = &problem.body;
        assert_eq!((problem.status, problem.error_code()), (status, Some(code)));
        assert_eq!((&body["status"], &body["detail"]), (&json!(status), &body["message"]));
        assert_eq!(body["type"], format!("urn:guesthouse:error:{code}"));
        assert_eq!(body["message"], plain.body["message"]);
        assert_eq!(body["details"], plain.body["details"]);
    }
    let good = server.send(
        "POST",
        "/v1/predict",
        &accept("application/problem+json"),
        br#"{"text": "You are nice"}"#,
    );
    assert_eq!((good.status, good.header("content-type")), (200, Some("application/json")));
}
