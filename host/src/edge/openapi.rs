//! What can be asked of the server, as OpenAPI 3.1: made from what is loaded whenever somebody asks, so
//! that it never says anything else than what is served. Needs a key, because names say something too.

mod operations;
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
use super::{Policy, Shared};
use crate::model::{ModelName, Selector};
use crate::registry::{ModelVersions, Snapshot};
use crate::router::{self, RouteError};
use crate::version::ServableVersion;

/// `GET /openapi.json`
pub(super) async fn server(
    State(edge): Shared,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    edge.authorize(&headers)?;
    Ok(Json(document(&edge.registry.snapshot(), &edge.policy.load(), None)))
}

/// `GET /models/{model}/openapi.json`
pub(super) async fn model(
    State(edge): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    edge.authorize(&headers)?;
    let (model, _) = target(&model, None)?;
    let snapshot = edge.registry.snapshot();
    if !snapshot.models.contains_key(&model) {
        return Err(RouteError::UnknownModel.into());
    }
    Ok(Json(document(&snapshot, &edge.policy.load(), Some(&model))))
}

/// `GET /models/{model}/versions/{selector}/schema`
pub(super) async fn schema(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    edge.authorize(&headers)?;
    let (model, selector) = target(&model, Some(&selector))?;
    let found = router::explain(&edge.registry.snapshot(), &model, &selector, Instant::now())?;
    let (version, ..) = found.into_iter().next().ok_or(RouteError::NotReady)?;
    let schemas = Schemas::new(&edge.policy.load(), &version);
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

/// The whole document, or the part of it that is about one model.
fn document(snapshot: &Snapshot, policy: &Policy, only: Option<&ModelName>) -> Value {
    let mut document = Document::default();
    if only.is_none() {
        operations::general(&mut document, snapshot);
        document.default_model(snapshot, policy);
    }
    let models = snapshot.models.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    for (name, versions) in models {
        document.model(snapshot, policy, name, versions);
    }
    let title = only.map_or("Guesthouse".to_owned(), |model| format!("Guesthouse: {model}"));
    let mut components = schemas::common();
    components.extend(document.schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Predictions of the models that this server has loaded.",
        },
        "servers": [{"url": "/"}],
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
    fn default_model(&mut self, snapshot: &Snapshot, policy: &Policy) {
        let mut names = snapshot.models.keys();
        let only = names.next().filter(|_| names.next().is_none());
        let Some(name) = policy.default_model.as_ref().or(only) else { return };
        let Some(versions) = snapshot.models.get(name) else { return };
        self.tag("default model", &format!("The paths that name no model: they mean {name}."));
        if let Some(version) = answering(snapshot, name, &Selector::Default) {
            self.predict("", "default model", policy, &version, true);
        }
        let mut majors: Vec<_> = versions.versions.keys().map(|version| version.major).collect();
        majors.dedup();
        for major in majors {
            if let Some(version) = answering(snapshot, name, &Selector::major(major)) {
                self.predict(&format!("/v{major}"), "default model", policy, &version, false);
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
        let described = answering.as_ref().and_then(|version| version.metadata().description.clone());
        self.tag(tag, &described.unwrap_or_default());
        operations::catalogue(self, name);
        if let Some(version) = answering {
            self.predict(&format!("/models/{name}"), tag, policy, &version, true);
        }
        for version in versions.versions.values().filter_map(|state| state.servable()) {
            let number = &version.id().version;
            let path = format!("/models/{name}/versions/{number}");
            self.predict(&path, tag, policy, version, false);
        }
    }

    fn predict(
        &mut self,
        path: &str,
        tag: &str,
        policy: &Policy,
        version: &ServableVersion,
        takes_selector: bool,
    ) {
        let schemas = Schemas::new(policy, version);
        for (name, schema) in schemas.named() {
            self.schemas.entry(name).or_insert(schema);
        }
        let operations = Operations { path, tag, schemas: &schemas, takes_selector };
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
