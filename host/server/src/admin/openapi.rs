//! `GET /openapi.json` of the admin listener: the admin API as OpenAPI 3.1.
//!
//! Unlike the document of the public listener it does not depend on what is served. Bodies and queries
//! come from the types of [`api`](crate::api).

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::Shared;
use crate::api::catalogue::{Resolution, ResolveQuery};
use crate::api::change::{
    CanaryRequest, ChangeQuery, ModelChange, PromoteRequest, RollbackRequest, ShadowReport,
    ShadowRequest, WithRequestId,
};
use crate::api::error::{ErrorBody, ErrorCode, Problem};
use crate::api::history::{History, HistoryQuery};
use crate::api::keys::{CreateKeyRequest, KeyChange, KeyList};
use crate::api::operation::{Operation, OperationQuery};
use crate::api::schema;
use crate::api::status::{LogFilter, ModelStatus, Status};
use crate::edge::error::ApiError;
use crate::edge::forwarded;
use crate::edge::idempotency::MAX_KEY_LENGTH;

/// Errors of every request.
const GENERAL: [ErrorCode; 5] = [
    ErrorCode::MalformedRequest,
    ErrorCode::Unauthorized,
    ErrorCode::NotFound,
    ErrorCode::MethodNotAllowed,
    ErrorCode::Internal,
];

/// Further errors of requests with a body.
const BODY: [ErrorCode; 4] = [
    ErrorCode::RequestTimeout,
    ErrorCode::PayloadTooLarge,
    ErrorCode::UnsupportedMediaType,
    ErrorCode::NotReady,
];

/// Further errors of changes.
const CHANGE: [ErrorCode; 6] = [
    ErrorCode::Conflict,
    ErrorCode::RevisionConflict,
    ErrorCode::IdempotencyMismatch,
    ErrorCode::UnacceptableArtifact,
    ErrorCode::UnacceptableInput,
    ErrorCode::InsufficientStorage,
];

/// `GET /openapi.json`
pub(super) async fn show(
    State(admin): Shared,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin.authorize(&headers)?;
    // Relative to the document, unless a proxy tells the path under which it serves the API.
    let server = forwarded::prefix(&headers).unwrap_or(".").to_owned();
    let render = move || Json(document(&server));
    tokio::task::spawn_blocking(render).await.map_err(|_panic| ApiError::internal())
}

/// The OpenAPI document of the admin API. Its paths begin at the server's URL.
pub fn document(server: &str) -> Value {
    let mut components = schema::components();
    let mut paths = Map::new();
    add_status(&mut paths, &mut components);
    add_models(&mut paths, &mut components);
    add_deployments(&mut paths, &mut components);
    add_keys(&mut paths, &mut components);
    components.subschema_for::<ErrorBody>();
    components.subschema_for::<Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Guesthouse: admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Changes of what is served, and their history. Every request needs a key \
                with the scope `admin`.",
        },
        "servers": [{"url": server}],
        "security": [{"key": []}, {"bearer": []}],
        "tags": [
            {"name": "status", "description": "What is served, and what was changed."},
            {"name": "models", "description": "Which version of a model answers which requests."},
            {"name": "deployments", "description": "New versions."},
            {"name": "keys", "description": "Who may send requests."},
        ],
        "paths": paths,
        "components": {
            "schemas": schema::definitions(components),
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    })
}

/// An operation that is being described.
struct OperationObject(Value);

impl OperationObject {
    fn new(tag: &str, id: &str, summary: &str) -> Self {
        let operation = json!({
            "operationId": id, "tags": [tag], "summary": summary, "parameters": [], "responses": {},
        });
        Self(operation).errors(&GENERAL)
    }

    /// The response of success, with a body of this type.
    fn returns<T: JsonSchema>(
        mut self,
        components: &mut SchemaGenerator,
        status: &str,
        description: &str,
    ) -> Self {
        let schema = components.subschema_for::<T>();
        self.0["responses"][status] = json!({
            "description": description,
            "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": schema}},
        });
        self
    }

    /// A parameter of the path.
    fn path(mut self, name: &str, schema: Value) -> Self {
        let parameter = json!({"name": name, "in": "path", "required": true, "schema": schema});
        self.parameters().push(parameter);
        self
    }

    fn model(self) -> Self {
        self.path("model", json!({"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,63}$"}))
    }

    /// The fields of a query, without those that the operation rejects.
    fn query<T: JsonSchema>(mut self, without: &[&str]) -> Self {
        let mut schema = schema::request::<T>();
        let properties = schema["properties"].take();
        let properties = properties.as_object().cloned().unwrap_or_default();
        for (name, mut schema) in properties {
            if without.contains(&name.as_str()) {
                continue;
            }
            // A query has no null: what is optional is left out.
            if let Some(types) = schema["type"].as_array_mut() {
                types.retain(|word| word != "null");
            }
            let description = schema["description"].take();
            schema.as_object_mut().expect("a schema is an object").remove("description");
            let parameter =
                json!({"name": name, "in": "query", "description": description, "schema": schema});
            self.parameters().push(parameter);
        }
        self
    }

    /// A JSON body of this type.
    fn body<T: JsonSchema>(self, is_required: bool) -> Self {
        let content = json!({"application/json": {"schema": schema::request::<T>()}});
        self.content(content, is_required)
    }

    fn content(mut self, content: Value, is_required: bool) -> Self {
        self.0["requestBody"] = json!({"required": is_required, "content": content});
        self.errors(&BODY)
    }

    /// The header and the errors that all changes have.
    fn change(mut self) -> Self {
        let key = json!({
            "type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH,
            "pattern": "^[ -~]*[!-~][ -~]*$",
        });
        let parameter = json!({
            "name": "Idempotency-Key", "in": "header", "schema": key,
            "description": "Identifies the change: a retry with the same key does it once.",
        });
        self.parameters().push(parameter);
        self.errors(&CHANGE).errors(&BODY)
    }

    /// Responses for the statuses of the error codes.
    fn errors(mut self, codes: &[ErrorCode]) -> Self {
        for code in codes {
            let response = &mut self.0["responses"][code.status().as_str()];
            match response["description"].as_str() {
                Some(known) if known.split(", ").any(|word| word == code.as_str()) => {}
                Some(known) => {
                    response["description"] = json!(format!("{known}, {}", code.as_str()));
                }
                None => *response = error_response(*code),
            }
        }
        self
    }

    fn parameters(&mut self) -> &mut Vec<Value> {
        self.0["parameters"].as_array_mut().expect("an operation has parameters")
    }
}

fn error_response(code: ErrorCode) -> Value {
    let reference =
        |name: &str| json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
    json!({
        "description": code.as_str(),
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
        "content": {
            "application/json": reference("Error"),
            "application/problem+json": reference("Problem"),
        },
    })
}

fn add(paths: &mut Map<String, Value>, method: &str, path: &str, operation: OperationObject) {
    let item = paths.entry(format!("/admin/v1{path}")).or_insert_with(|| json!({}));
    item[method] = operation.0;
}

fn add_status(paths: &mut Map<String, Value>, components: &mut SchemaGenerator) {
    let operation = OperationObject::new("status", "status", "Every model with its versions")
        .returns::<Status>(components, "200", "The state of the server");
    add(paths, "get", "/status", operation);
    let operation = OperationObject::new("status", "history", "The latest changes")
        .query::<HistoryQuery>(&[])
        .returns::<History>(components, "200", "The changes, the newest first");
    add(paths, "get", "/history", operation);
    let operation = OperationObject::new("status", "log", "The levels of the log")
        .returns::<LogFilter>(components, "200", "The log filter");
    add(paths, "get", "/log", operation);
    let summary = "Change the levels of the log until the server is restarted";
    let operation = OperationObject::new("status", "set_log", summary)
        .body::<LogFilter>(true)
        .errors(&[ErrorCode::UnacceptableInput])
        .returns::<LogFilter>(components, "200", "The log filter");
    add(paths, "put", "/log", operation);
}

fn add_models(paths: &mut Map<String, Value>, components: &mut SchemaGenerator) {
    let model = |id: &str, summary: &str| OperationObject::new("models", id, summary).model();
    let operation = model("model", "A model with its versions");
    let operation = operation.returns::<ModelStatus>(components, "200", "The state of the model");
    add(paths, "get", "/models/{model}", operation);
    let operation = model("resolve", "Which version answers a request")
        .query::<ResolveQuery>(&[])
        .errors(&[ErrorCode::NotReady, ErrorCode::TooManyFailures])
        .returns::<Resolution>(components, "200", "The versions with their shares");
    add(paths, "get", "/models/{model}/resolve", operation);
    let operation = model("shadow_report", "What the shadow found");
    let operation = operation.returns::<ShadowReport>(components, "200", "The comparisons");
    add(paths, "get", "/models/{model}/shadow", operation);
    let mut change = |method: &str, path: &str, operation: OperationObject| {
        let operation = operation
            .query::<ChangeQuery>(&["promote"])
            .change()
            .returns::<WithRequestId<ModelChange>>(components, "200", "The outcome of the change");
        add(paths, method, &format!("/models/{{model}}{path}"), operation);
    };
    let operation = model("promote", "Make a version the stable one").body::<PromoteRequest>(true);
    change("post", "/promote", operation);
    let operation = model("canary", "Give a version a share of the requests");
    change("post", "/canary", operation.body::<CanaryRequest>(true));
    let operation = model("shadow", "Compare a version with those that answer, or stop it");
    change("post", "/shadow", operation.body::<ShadowRequest>(false));
    let operation = model("rollback", "End a rollout, or go back to the version promoted before");
    change("post", "/rollback", operation.body::<RollbackRequest>(false));
    let operation = model("undeploy", "Remove a version to which nothing is routed")
        .path("version", json!({"type": "string", "pattern": schema::VERSION}));
    change("delete", "/versions/{version}", operation);
}

fn add_deployments(paths: &mut Map<String, Value>, components: &mut SchemaGenerator) {
    let artifact = json!({"schema": {"type": "string", "format": "binary", "minLength": 1}});
    let content = json!({"application/wasm": artifact, "application/octet-stream": artifact});
    let summary = "Deploy an artifact, which becomes ready in the background";
    let mut operation = OperationObject::new("deployments", "deploy", summary)
        .query::<ChangeQuery>(&[])
        .content(content, true)
        .change()
        .errors(&[ErrorCode::Overloaded])
        .returns::<Operation>(components, "202", "The operation to poll");
    operation.0["responses"]["202"]["headers"]["Location"] = json!({
        "description": "The path of the operation.", "schema": {"type": "string"},
    });
    add(paths, "post", "/deploy", operation);
    let operation =
        OperationObject::new("deployments", "operation", "The progress of a deployment")
            .path("operation", json!({"type": "string"}))
            .query::<OperationQuery>(&[])
            .returns::<Operation>(components, "200", "The progress so far");
    add(paths, "get", "/operations/{operation}", operation);
}

fn add_keys(paths: &mut Map<String, Value>, components: &mut SchemaGenerator) {
    let operation = OperationObject::new("keys", "keys", "Every key, without the keys themselves")
        .returns::<KeyList>(components, "200", "The keys");
    add(paths, "get", "/keys", operation);
    let summary = "Make a key, which the response contains once";
    let operation = OperationObject::new("keys", "create_key", summary)
        .query::<ChangeQuery>(&["promote", "expected_revision"])
        .body::<CreateKeyRequest>(true)
        .change()
        .returns::<WithRequestId<KeyChange>>(components, "200", "The key");
    add(paths, "post", "/keys", operation);
    let operation = OperationObject::new("keys", "revoke_key", "Revoke a key at once")
        .path("id", json!({"type": "string"}))
        .query::<ChangeQuery>(&["promote", "expected_revision"])
        .change()
        .returns::<WithRequestId<KeyChange>>(components, "200", "The revoked key");
    add(paths, "delete", "/keys/{id}", operation);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_the_document_resolve() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|field| references(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = document(".");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }
}
