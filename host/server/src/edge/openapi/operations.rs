//! The operation objects of the document: parameters, bodies and responses.

use serde_json::{Map, Value, json};

use super::schemas::{Schemas, reference};
use crate::api::schema;
use crate::config::MetricsListener;
use crate::edge::error::ErrorCode;
use crate::edge::idempotency::MAX_KEY_LENGTH;
use crate::edge::pages::fragments::Document;
use crate::edge::policy::Policy;
use guesthouse_model::{Field, ModelName};

/// The errors of every request.
pub(super) const GENERAL: [ErrorCode; 4] = [
    ErrorCode::MalformedRequest,
    ErrorCode::MethodNotAllowed,
    ErrorCode::Internal,
    ErrorCode::NotReady,
];

/// Further errors of requests that need a key.
pub(super) const KEYED: [ErrorCode; 4] =
    [ErrorCode::Unauthorized, ErrorCode::Forbidden, ErrorCode::RateLimited, ErrorCode::NotFound];

/// Further errors of predictions.
pub(super) const PREDICTION: [ErrorCode; 10] = [
    ErrorCode::RequestTimeout,
    ErrorCode::PayloadTooLarge,
    ErrorCode::UnsupportedMediaType,
    ErrorCode::UnacceptableInput,
    ErrorCode::IdempotencyConflict,
    ErrorCode::IdempotencyMismatch,
    ErrorCode::ModelFailure,
    ErrorCode::Overloaded,
    ErrorCode::NotReady,
    ErrorCode::DeadlineExceeded,
];

/// Further errors of changes of what is served.
pub(super) const CHANGES: [ErrorCode; 3] =
    [ErrorCode::Conflict, ErrorCode::UnacceptableArtifact, ErrorCode::InsufficientStorage];

/// An invalid request id is not an error, but replaced.
const REQUEST_ID: &str = "1 to 128 visible ASCII characters, which are returned and logged; \
    any other value is replaced";

/// The predictions of one path.
pub(super) struct Operations<'a> {
    pub(super) path: &'a str,
    pub(super) tag: &'a str,
    pub(super) schemas: &'a Schemas<'a>,
    /// Whether a header selects the version, because the path does not.
    pub(super) takes_selector: bool,
}

impl Operations<'_> {
    pub(super) fn single(&self) -> Value {
        let mut content = Map::new();
        content.insert("application/json".to_owned(), self.body("request"));
        content.insert("multipart/form-data".to_owned(), self.form());
        let mut needed = self.schemas.inputs().iter().filter(|field| field.default.is_none());
        if let (Some(file), None) = (self.schemas.files().next(), needed.nth(1)) {
            let description = format!("the bytes of `{}`", file.name);
            let schema = json!({"type": "string", "format": "binary", "description": description});
            content.insert("application/octet-stream".to_owned(), json!({"schema": schema}));
        }
        let mut operation = self.operation("predict", "One row", &Value::Object(content));
        operation["responses"]["200"] = self.answer("The outputs", "response");
        operation
    }

    pub(super) fn batch(&self) -> Value {
        let content = json!({"application/json": self.body("batch-request")});
        let mut operation = self.operation("batch_predict", "Many rows, in their order", &content);
        operation["responses"]["200"] = self.answer("The outputs of all rows", "batch-response");
        let some =
            "The outputs of some rows and the errors of the others; only with `partial=true`";
        operation["responses"]["207"] = self.answer(some, "batch-response");
        let partial = json!({
            "name": "partial", "in": "query", "schema": {"enum": ["true", "false"]},
            "description": "whether valid rows are answered if others fail",
        });
        operation["parameters"].as_array_mut().expect("parameters").push(partial);
        operation
    }

    fn body(&self, what: &str) -> Value {
        json!({"schema": reference(&self.schemas.name(what))})
    }

    /// The form: a part for each input. Bytes and texts are sent as they are, everything else as JSON.
    fn form(&self) -> Value {
        let part = |field: &Field| {
            let schema = if field.is_text() || !self.schemas.files().any(|it| it.name == field.name)
            {
                json!({"type": "string"})
            } else {
                json!({"type": "string", "format": "binary"})
            };
            (field.name.clone(), schema)
        };
        let properties: Map<_, _> = self.schemas.inputs().iter().map(part).collect();
        let needed = self.schemas.inputs().iter().filter(|field| field.default.is_none());
        let needed: Vec<_> = needed.map(|field| field.name.as_str()).collect();
        json!({"schema": guesthouse_model::record::schema::object(properties, &needed)})
    }

    fn answer(&self, description: &str, what: &str) -> Value {
        json!({
            "description": description,
            "headers": headers(&[
                "X-Request-Id",
                "X-Model-Version",
                "X-Route-Reason",
                "Idempotency-Replayed",
                "RateLimit",
                "RateLimit-Policy",
            ]),
            "content": {"application/json": self.body(what)},
        })
    }

    fn operation(&self, name: &str, summary: &str, content: &Value) -> Value {
        let id = format!("{}/{name}", self.path).trim_start_matches('/').replace('/', ".");
        json!({
            "operationId": id,
            "tags": [self.tag],
            "summary": summary,
            "parameters": self.parameters(),
            "requestBody": {"required": true, "content": content},
            "responses": errors(&[&GENERAL[..], &KEYED, &PREDICTION].concat(), Errors::Own),
        })
    }

    fn parameters(&self) -> Vec<Value> {
        let header = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "header", "description": description, "schema": schema});
        // Leading and trailing spaces belong to the header, not to the key.
        let key = json!({"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[ -~]*[!-~][ -~]*$"});
        let mut parameters = vec![
            header("X-Request-Id", REQUEST_ID, json!({"type": "string"})),
            header(
                "Idempotency-Key",
                "the idempotency key: a retry gets the first response again",
                key,
            ),
            header(
                "X-Request-Timeout-Ms",
                "the deadline of the request",
                json!({"type": "integer", "minimum": 1, "maximum": u32::MAX}),
            ),
        ];
        if self.takes_selector {
            let selector = schema::selector();
            parameters.push(header("X-Model-Version", "selects the version", selector));
        }
        parameters
    }
}

/// Describe the paths that are not about one model.
pub(super) fn general(document: &mut Document, policy: &Policy) {
    document.tag("server", "The server itself.");
    let status = |word: &str| {
        let schema = json!({"type": "object", "properties": {"status": {"const": word}}, "required": ["status"]});
        json!({"description": word, "content": {"application/json": {"schema": schema}}})
    };
    let mut series = text("text/plain", "the series");
    series["content"]["application/openmetrics-text"] = json!({"schema": {"type": "string"}});
    let metrics = "What Prometheus reads; OpenMetrics where `Accept` asks for it";
    for (path, id, summary, answer, is_open) in [
        ("/healthz", "healthz", "Whether the process lives", status("alive"), true),
        ("/readyz", "readyz", "Whether requests should be sent here", status("ready"), true),
        ("/metrics", "metrics", metrics, series, !policy.metrics.needs_key),
        ("/docs", "docs", "This document as a page", text("text/html", "the page"), true),
        ("/openapi.json", "openapi", "This document", object_of("the document"), false),
        ("/models", "models", "Every model with its versions", list(), false),
    ] {
        if path == "/metrics" && policy.metrics.listener != MetricsListener::Public {
            continue;
        }
        document
            .paths
            .insert(path.to_owned(), json!({"get": read(id, "server", summary, &answer, is_open)}));
    }
}

/// Describe the catalogue of one model. If no version is loaded, only its state can be read.
pub(super) fn catalogue(document: &mut Document, model: &ModelName, is_loaded: bool) {
    let selector = json!({
        "name": "selector", "in": "path", "required": true,
        "schema": schema::selector(),
    });
    let asked = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "schema": schema, "description": description});
    let state = content_of("the model", &reference("Model"));
    let tag = model.as_str();
    for (path, name, summary, answer, parameters) in [
        ("", "state", "Its versions, and what goes to them", state, vec![]),
        (
            "/resolve",
            "resolve",
            "Which versions answer",
            content_of("the versions with their shares", &reference("Resolution")),
            vec![
                asked(
                    "selector",
                    "the selector in the path or header of a request",
                    schema::selector(),
                ),
                asked(
                    "key",
                    "the caller's value of the sticky header or field",
                    json!({"type": "string"}),
                ),
            ],
        ),
        (
            "/openapi.json",
            "openapi",
            "This part of the document",
            object_of("the document"),
            vec![],
        ),
        (
            "/versions/{selector}",
            "version",
            "What a version is",
            content_of("the version with its signature", &reference("VersionDetails")),
            vec![selector.clone()],
        ),
        (
            "/versions/{selector}/schema",
            "schema",
            "JSON Schemas of its bodies",
            content_of("the schemas", &reference("VersionSchemas")),
            vec![selector.clone()],
        ),
        (
            "/versions/{selector}/proto",
            "proto",
            "The `.proto` of its gRPC service",
            text("text/plain", "the file"),
            vec![selector],
        ),
    ] {
        if !is_loaded && name != "state" {
            continue;
        }
        let id = format!("models.{model}.{name}");
        let mut operation = read(&id, tag, summary, &answer, false);
        if let Some((field, next)) = link(name).filter(|_| is_loaded) {
            operation["responses"]["200"]["links"] = json!({next: {
                "operationId": format!("models.{model}.{next}"),
                "parameters": {"selector": format!("$response.body#/{field}")},
            }});
        }
        operation["parameters"] = json!(parameters);
        document.paths.insert(format!("/models/{model}{path}"), json!({"get": operation}));
    }
}

/// The link of an operation: the field of its response that selects a version, and the operation to call
/// with it.
fn link(name: &str) -> Option<(&'static str, &'static str)> {
    match name {
        "state" => Some(("stable", "version")),
        "version" => Some(("version", "schema")),
        _ => None,
    }
}

pub(super) fn read(id: &str, tag: &str, summary: &str, answer: &Value, is_open: bool) -> Value {
    read_in(Errors::Own, id, tag, (summary, answer, is_open))
}

pub(super) fn read_in(
    form: Errors,
    id: &str,
    tag: &str,
    (summary, answer, is_open): (&str, &Value, bool),
) -> Value {
    let codes = if is_open { GENERAL.to_vec() } else { [&GENERAL[..], &KEYED].concat() };
    let mut responses = errors(&codes, form);
    responses["200"] = answer.clone();
    let mut operation = json!({
        "operationId": id, "tags": [tag], "summary": summary, "responses": responses,
    });
    if is_open {
        operation["security"] = json!([]);
    }
    operation
}

fn list() -> Value {
    let models = json!({"type": "array", "items": reference("Model")});
    content_of(
        "the models",
        &json!({"type": "object", "properties": {"models": models}, "required": ["models"]}),
    )
}

fn object_of(description: &str) -> Value {
    content_of(description, &json!({"type": "object"}))
}

fn text(media_type: &str, description: &str) -> Value {
    let content = Map::from_iter([(media_type.to_owned(), json!({"schema": {"type": "string"}}))]);
    json!({"description": description, "content": content})
}

pub(super) fn content_of(description: &str, schema: &Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

/// The form of error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errors {
    /// The server's own, or problem details (RFC 9457).
    Own,
    /// That of the Open Inference Protocol.
    Protocol,
}

/// References to the responses of the errors, by status.
pub(super) fn errors(codes: &[ErrorCode], form: Errors) -> Value {
    let responses = by_status(codes).into_iter().map(|(status, codes)| {
        let reference = format!("#/components/responses/{}", response_name(&codes, form));
        (status, json!({"$ref": reference}))
    });
    responses.collect::<Map<_, _>>().into()
}

/// The responses that operations refer to, so that a document about a thousand models contains each of
/// them once.
pub(super) fn responses() -> Map<String, Value> {
    let sets = [
        GENERAL.to_vec(),
        [&GENERAL[..], &KEYED].concat(),
        [&GENERAL[..], &KEYED, &PREDICTION].concat(),
        CHANGES.to_vec(),
    ];
    let all = sets.iter().flat_map(|codes| by_status(codes));
    let named = all.flat_map(|(_, codes)| {
        [Errors::Own, Errors::Protocol]
            .map(|form| (response_name(&codes, form), error_response(&codes, form)))
    });
    named.collect()
}

fn by_status(codes: &[ErrorCode]) -> Vec<(String, Vec<ErrorCode>)> {
    let mut all: Vec<(String, Vec<ErrorCode>)> = Vec::new();
    for code in codes {
        let status = code.status();
        match all.iter_mut().find(|(known, _)| known == status.as_str()) {
            Some((_, codes)) if codes.contains(code) => {}
            Some((_, codes)) => codes.push(*code),
            None => all.push((status.as_str().to_owned(), vec![*code])),
        }
    }
    all
}

fn response_name(codes: &[ErrorCode], form: Errors) -> String {
    let words: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
    match form {
        Errors::Own => words.join("."),
        Errors::Protocol => format!("v2.{}", words.join(".")),
    }
}

fn error_response(codes: &[ErrorCode], form: Errors) -> Value {
    let words: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
    let tells_when = codes.iter().any(|code| code.has_retry_delay());
    let content = match form {
        Errors::Own => json!({
            "application/json": {"schema": reference("Error")},
            "application/problem+json": {"schema": reference("Problem")},
        }),
        Errors::Protocol => json!({"application/json": {"schema": reference("ProtocolError")}}),
    };
    json!({
        "description": words.join(", "),
        "headers": headers(if tells_when { &["X-Request-Id", "Retry-After"] } else { &["X-Request-Id"] }),
        "content": content,
    })
}

pub(super) fn headers(names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| ((*name).to_owned(), json!({"schema": {"type": "string"}})))
        .collect::<Map<_, _>>()
        .into()
}
