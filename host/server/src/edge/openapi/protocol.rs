//! The Open Inference Protocol in the document: its paths, requests and responses. The type of a tensor's
//! elements depends on another field, which JSON Schema cannot express.

use serde_json::{Map, Value, json};

use super::operations::{
    CHANGES, Errors, GENERAL, KEYED, PREDICTION, content_of, errors, headers, read_in,
};
use super::schemas::reference;
use crate::api::schema;
use crate::edge::pages::fragments::Document;
use guesthouse_model::{Datatype, ModelName};

const TAG: &str = "open inference protocol";

/// The path of the statistics of all models, and of the metadata of a model called `stats`.
pub(super) const STATISTICS: &str = "/v2/models/stats";

/// Describe the paths that are not about one model.
pub(super) fn general(document: &mut Document) {
    document.tag(TAG, "The Open Inference Protocol, version 2, with Triton's extensions.");
    let flags = |names: &[&str]| {
        let flags = names.iter().map(|name| ((*name).to_owned(), json!({"const": true})));
        object(flags.collect::<Map<_, _>>().into(), names)
    };
    let text = || json!({"type": "string"});
    let server = object(
        json!({"name": text(), "version": text(), "extensions": {"type": "array", "items": text()}}),
        &["name", "version", "extensions"],
    );
    let statistics = reference("ModelStatistics");
    for (path, id, summary, body, is_open) in [
        ("/v2", "server", "Name, version and extensions", server.clone(), true),
        ("/v2/", "server-slash", "The same", server, true),
        ("/v2/health/live", "live", "Whether the process lives", flags(&["live"]), true),
        (
            "/v2/health/ready",
            "ready",
            "Whether requests should be sent here",
            flags(&["live", "ready"]),
            true,
        ),
        (STATISTICS, "stats", "What all models have done", statistics, false),
    ] {
        get(document, path, id, TAG, (summary, &body, is_open));
    }
    repository(document);
}

/// Describe loading and unloading by name, for operators.
fn repository(document: &mut Document) {
    let entry = object(
        json!({
            "name": {"type": "string"},
            "version": {"type": "string"},
            "state": {"enum": ["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]},
            "reason": {"type": "string"},
        }),
        &["name", "version", "state", "reason"],
    );
    let index = json!({"type": "array", "items": entry});
    let ready = json!({"type": "object", "properties": {"ready": {"type": ["boolean", "null"]}}});
    let change =
        json!({"type": "object", "properties": {"parameters": {"type": ["object", "null"]}}});
    let model = json!({"name": "model", "in": "path", "required": true, "schema": {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,63}$"}});
    for (path, id, summary, sent, answer) in [
        ("index", "index", "Every version with its state; for operators", ready, index),
        ("models/{model}/load", "load", "Serve a model; for operators", change.clone(), json!({})),
        ("models/{model}/unload", "unload", "Serve it no more; for operators", change, json!({})),
    ] {
        let mut operation = post(&format!("v2.repository.{id}"), TAG, summary, &sent);
        operation["requestBody"]["required"] = json!(false);
        operation["responses"]["200"] = content_of("done", &answer);
        if path.contains('{') {
            operation["parameters"] = json!([model]);
        }
        document.paths.insert(format!("/v2/repository/{path}"), json!({"post": operation}));
    }
}

/// Describe the paths of one model, with and without a version.
pub(super) fn model(document: &mut Document, name: &ModelName) {
    let version = json!({
        "name": "version", "in": "path", "required": true, "schema": schema::selector(),
    });
    let ready =
        object(json!({"name": {"type": "string"}, "ready": {"const": true}}), &["name", "ready"]);
    for (place, what, parameters) in
        [("", "model", json!([])), ("/versions/{version}", "version", json!([version]))]
    {
        let base = format!("/v2/models/{name}{place}");
        let id = |word: &str| format!("v2.models.{name}.{what}.{word}");
        for (path, word, summary, schema) in [
            ("", "metadata", "What it takes and gives", reference("ModelMetadata")),
            ("/ready", "ready", "Whether it can be asked", ready.clone()),
            ("/config", "config", "How it is run", json!({"type": "object"})),
            ("/stats", "stats", "What it has done", reference("ModelStatistics")),
        ] {
            let path = format!("{base}{path}");
            let operation = (summary, &schema, false);
            get(document, &path, &id(word), name.as_str(), operation);
            document.paths[&path]["get"]["parameters"] = parameters.clone();
        }
        let mut operation =
            post(&id("infer"), name.as_str(), "Outputs for inputs", &reference("InferRequest"));
        let raw = json!({"schema": {"type": "string", "format": "binary", "description": "JSON, then tensors"}});
        operation["requestBody"]["content"]["application/octet-stream"] = raw.clone();
        let mut answer = content_of("the outputs", &reference("InferResponse"));
        answer["content"]["application/octet-stream"] = raw;
        answer["headers"] = headers(&[
            "X-Request-Id",
            "X-Model-Version",
            "X-Route-Reason",
            "Inference-Header-Content-Length",
            "RateLimit",
            "RateLimit-Policy",
        ]);
        operation["responses"]["200"] = answer;
        operation["parameters"] = parameters.clone();
        let length = json!({
            "name": "Inference-Header-Content-Length", "in": "header",
            "description": "how many bytes of the body are JSON, where tensors follow",
            "schema": {"type": "integer", "minimum": 0},
        });
        operation["parameters"].as_array_mut().expect("parameters").push(length);
        document.paths.insert(format!("{base}/infer"), json!({"post": operation}));
    }
}

/// The schemas that the paths of all models share.
pub(super) fn schemas() -> [(&'static str, Value); 4] {
    [
        ("InferRequest", request()),
        ("InferResponse", answer()),
        ("ModelMetadata", metadata()),
        ("ModelStatistics", statistics()),
    ]
}

fn get(
    document: &mut Document,
    path: &str,
    id: &str,
    tag: &str,
    (summary, schema, is_open): (&str, &Value, bool),
) {
    let id = if id.starts_with("v2.") { id.to_owned() } else { format!("v2.{id}") };
    let answer = content_of(summary, schema);
    let operation = read_in(Errors::Protocol, &id, tag, (summary, &answer, is_open));
    document.paths.insert(path.to_owned(), json!({"get": operation}));
}

fn post(id: &str, tag: &str, summary: &str, sent: &Value) -> Value {
    let mut responses = errors(&[&GENERAL[..], &KEYED, &PREDICTION].concat(), Errors::Protocol);
    if id.starts_with("v2.repository.") {
        let more = errors(&CHANGES, Errors::Protocol);
        if let (Some(all), Value::Object(more)) = (responses.as_object_mut(), more) {
            more.into_iter().for_each(|(status, response)| {
                all.entry(status).or_insert(response);
            });
        }
    }
    json!({
        "operationId": id,
        "tags": [tag],
        "summary": summary,
        "requestBody": {"required": true, "content": {"application/json": {"schema": sent}}},
        "responses": responses,
    })
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

fn datatypes() -> Value {
    json!({"enum": Datatype::ALL.map(Datatype::as_str)})
}

fn shape(minimum: i64) -> Value {
    json!({"type": "array", "items": {"type": "integer", "minimum": minimum}})
}

fn request() -> Value {
    let parameters = json!({
        "type": ["object", "null"],
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    });
    let input = object(
        json!({
            "name": {"type": "string"}, "shape": shape(0), "datatype": datatypes(),
            "parameters": parameters, "data": {"type": ["array", "null"]},
        }),
        &["name", "shape", "datatype"],
    );
    let output = object(json!({"name": {"type": "string"}, "parameters": parameters}), &["name"]);
    object(
        json!({
            "id": {"type": ["string", "null"]},
            "parameters": parameters,
            "inputs": {"type": "array", "items": input},
            "outputs": {"type": ["array", "null"], "items": output},
        }),
        &["inputs"],
    )
}

fn answer() -> Value {
    let output = object(
        json!({
            "name": {"type": "string"}, "shape": shape(0), "datatype": datatypes(),
            "parameters": {"type": "object"}, "data": {"type": "array"},
        }),
        &["name", "shape", "datatype"],
    );
    object(
        json!({
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": output},
        }),
        &["model_name", "model_version", "outputs"],
    )
}

fn metadata() -> Value {
    let tensor = object(
        json!({"name": {"type": "string"}, "datatype": datatypes(), "shape": shape(-1)}),
        &["name", "datatype", "shape"],
    );
    let tensors = json!({"type": "array", "items": tensor});
    object(
        json!({
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": tensors,
            "outputs": tensors,
            "properties": {"type": "object", "additionalProperties": {"type": "string"}},
        }),
        &["name", "versions", "platform", "inputs", "outputs", "properties"],
    )
}

fn statistics() -> Value {
    let version = object(
        json!({
            "name": {"type": "string"},
            "version": {"type": "string"},
            "last_inference": {"type": "integer"},
            "inference_count": {"type": "integer"},
            "execution_count": {"type": "integer"},
            "inference_stats": {"type": "object"},
            "batch_stats": {"type": "array", "items": {"type": "object"}},
        }),
        &["name", "version", "inference_count", "execution_count", "inference_stats"],
    );
    object(json!({"model_stats": {"type": "array", "items": version}}), &["model_stats"])
}
