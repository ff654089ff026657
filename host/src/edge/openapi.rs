//! What can be asked of the server, as OpenAPI 3.1: made from what is loaded whenever somebody asks, so
//! that it never says anything else than what is served. Needs a key, because names say something too.

mod operations;
mod protocol;
mod schemas;

use std::time::Instant;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};

use self::operations::Operations;
use self::schemas::Schemas;
use super::error::ApiError;
use super::predict::target;
use super::{Policy, Shared, forwarded};
use crate::model::{ModelName, Selector};
use crate::registry::{ModelVersions, Snapshot};
use crate::router::{self, RouteError};
use crate::version::ServableVersion;

/// `GET /openapi.json`
pub(super) async fn server(
    State(edge): Shared,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let caller = edge.authorize_for_some(&headers)?;
    let may_know = |model: &ModelName| caller.scopes().predicts(model);
    let document = document(&edge.registry.snapshot(), &edge.policy.load(), None, may_know);
    Ok(Json(for_proxy(document, &headers)))
}

/// `GET /models/{model}/openapi.json`
pub(super) async fn model(
    State(edge): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let caller = edge.authorize(&headers)?;
    let (model, _) = target(&model, None)?;
    edge.permit(&caller, &model)?;
    let snapshot = edge.registry.snapshot();
    if !snapshot.models.contains_key(&model) {
        return Err(RouteError::UnknownModel.into());
    }
    let is_it = |other: &ModelName| *other == model;
    let document = document(&snapshot, &edge.policy.load(), Some(&model), is_it);
    Ok(Json(for_proxy(document, &headers)))
}

/// `GET /models/{model}/versions/{selector}/schema`
pub(super) async fn schema(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let caller = edge.authorize(&headers)?;
    let (model, selector) = target(&model, Some(&selector))?;
    edge.permit(&caller, &model)?;
    let found = router::explain(&edge.registry.snapshot(), &model, &selector, Instant::now())?;
    let (version, ..) = found.into_iter().next().ok_or(RouteError::NotReady)?;
    let policy = edge.policy.load();
    let schemas = Schemas::new(&policy, &version);
    let dialect = "https://json-schema.org/draft/2020-12/schema";
    let whole = |mut schema: Value| {
        schema["$schema"] = json!(dialect);
        schema
    };
    Ok(Json(json!({
        "model": version.id().name.as_str(),
        "version": version.id().version.to_string(),
        "request": whole(schemas.request()),
        "response": whole(schemas.response()),
        "batch_request": whole(schemas.batch_request()),
        "batch_response": whole(schemas.batch_response()),
    })))
}

/// The document with the path under which a proxy serves it, where one has said so: tools that cannot
/// resolve a relative address need it.
fn for_proxy(mut document: Value, headers: &HeaderMap) -> Value {
    if let Some(prefix) = forwarded::prefix(headers) {
        document["servers"] = json!([{"url": prefix}]);
    }
    document
}

/// The whole document, or the part of it that is about one model; it names none but those that its
/// reader may know of.
fn document(
    snapshot: &Snapshot,
    policy: &Policy,
    only: Option<&ModelName>,
    may_know: impl Fn(&ModelName) -> bool,
) -> Value {
    let mut document = Document::default();
    if only.is_none() {
        operations::general(&mut document);
        protocol::general(&mut document);
        document.default_model(snapshot, policy, &may_know);
    }
    let models = snapshot.models.iter().filter(|(name, _)| may_know(name));
    for (name, versions) in models {
        document.model(snapshot, policy, name, versions);
    }
    let title = only.map_or("Guesthouse".to_owned(), |model| format!("Guesthouse: {model}"));
    // Where the paths begin, seen from the document: so it holds behind a proxy as well.
    let server_url = if only.is_some() { "../.." } else { "." };
    let mut components = schemas::common();
    components.extend(document.schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Predictions of the models that this server has loaded.",
        },
        "servers": [{"url": server_url}],
        "security": [{"key": []}, {"bearer": []}],
        "tags": document.tags,
        "paths": document.paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    })
}

/// A document on its way.
#[derive(Default)]
struct Document {
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
    tags: Vec<Value>,
}

impl Document {
    /// The paths that name no model.
    fn default_model(
        &mut self,
        snapshot: &Snapshot,
        policy: &Policy,
        may_know: impl Fn(&ModelName) -> bool,
    ) {
        let mut names = snapshot.models.keys();
        let only = names.next().filter(|_| names.next().is_none());
        let name = policy.default_model.as_ref().or(only).filter(|name| may_know(name));
        let Some(name) = name else { return };
        let Some(versions) = snapshot.models.get(name) else { return };
        self.tag("default model", &format!("The paths that name no model: they mean {name}."));
        if let Some(version) = answering(snapshot, name, &Selector::Default) {
            let (schemas, tag) = (&Schemas::new(policy, &version), "default model");
            self.predict(&Operations { path: "", tag, schemas, takes_selector: true });
        }
        let mut majors: Vec<_> = versions.versions.keys().map(|version| version.major).collect();
        majors.dedup();
        for major in majors {
            if let Some(version) = answering(snapshot, name, &Selector::major(major)) {
                let (path, tag) = (&format!("/v{major}"), "default model");
                let schemas = &Schemas::new(policy, &version);
                self.predict(&Operations { path, tag, schemas, takes_selector: false });
            }
        }
    }

    /// The paths of one model.
    fn model(
        &mut self,
        snapshot: &Snapshot,
        policy: &Policy,
        name: &ModelName,
        versions: &ModelVersions,
    ) {
        let tag = name.as_str();
        let answering = answering(snapshot, name, &Selector::Default);
        let described =
            answering.as_ref().and_then(|version| version.metadata().description.clone());
        self.tag(tag, &described.unwrap_or_default());
        operations::catalogue(self, name);
        protocol::model(self, name);
        if let Some(version) = answering {
            let (path, schemas) = (&format!("/models/{name}"), &Schemas::new(policy, &version));
            self.predict(&Operations { path, tag, schemas, takes_selector: true });
        }
        for version in versions.versions.values().filter_map(|state| state.servable()) {
            let number = &version.id().version;
            let path = &format!("/models/{name}/versions/{number}");
            let schemas = &Schemas::new(policy, version);
            self.predict(&Operations { path, tag, schemas, takes_selector: false });
        }
    }

    fn predict(&mut self, operations: &Operations<'_>) {
        for (name, schema) in operations.schemas.named() {
            self.schemas.entry(name).or_insert(schema);
        }
        let path = operations.path;
        self.paths.insert(format!("{path}/predict"), json!({"post": operations.single()}));
        self.paths.insert(format!("{path}/batch_predict"), json!({"post": operations.batch()}));
    }

    fn tag(&mut self, name: &str, description: &str) {
        self.tags.push(json!({"name": name, "description": description}));
    }
}

/// The version that answers most requests with the selector.
fn answering(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
) -> Option<std::sync::Arc<ServableVersion>> {
    let found = router::explain(snapshot, model, selector, Instant::now()).ok()?;
    found.into_iter().next().map(|(version, ..)| version)
}
