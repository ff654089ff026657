//! What can be asked of the server, as OpenAPI 3.1: made from what is loaded whenever that has changed, so
//! that it never says anything else than what is served. Needs a key, because names say something too.
//!
//! The part about one model is rendered once for each set of its versions and kept; a document is such
//! parts, one after the other, so that a change of one model among a thousand costs little.

mod fragments;
mod operations;
mod protocol;
mod schemas;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use serde_json::{Map, Value, json};

pub(super) use self::fragments::Fragments;
use self::fragments::{Fragment, join, members};
use self::operations::Operations;
use self::schemas::Schemas;
use super::catalogue::{known_model, known_version};
use super::observe::{Account, answered};
use super::pages::{Content, Key, Kind, Scope};
use super::{Edge, Policy, Shared, forwarded};
use crate::api::catalogue::VersionSchemas;
use guesthouse_control::registry::{Snapshot, VersionState};
use guesthouse_control::router;
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::ServableVersion;

/// `GET /openapi.json`
pub(super) async fn server(State(edge): Shared, parts: Parts) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let caller = edge.admit_reader_of_all(&parts.headers, &mut account)?;
        let server = server_url(&parts.headers, ".");
        let kind = Kind::OpenApi { server: server.clone() };
        let key = Key::new(kind, Scope::of(&caller), &parts.headers);
        let make = move |edge: &Edge, key: &Key| Ok(whole(edge, &key.scope, &server));
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// `GET /models/{model}/openapi.json`
pub(super) async fn model(
    State(edge): Shared,
    Path(model): Path<String>,
    parts: Parts,
) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let model = known_model(&edge, &model, &parts.headers, &mut account)?;
        let server = server_url(&parts.headers, "../..");
        let kind = Kind::ModelOpenApi { model: model.clone(), server: server.clone() };
        let key = Key::new(kind, Scope::only(&model), &parts.headers);
        let make = move |edge: &Edge, key: &Key| {
            let (snapshot, policy) = (edge.registry.snapshot(), edge.policy.load_full());
            let fragments = fragments_of(edge, &snapshot, &policy, &key.scope);
            let title = format!("Guesthouse: {model}");
            Ok(document(&title, &server, &Document::default(), &fragments))
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

/// `GET /models/{model}/versions/{selector}/schema`
pub(super) async fn schema(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    parts: Parts,
) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let path = (&*model, &*selector);
        let version = known_version(&edge, path, &parts.headers, &mut account)?;
        let id = version.id();
        let key = Key::new(Kind::Schema(id.clone()), Scope::only(&id.name), &parts.headers);
        let make = move |edge: &Edge, _: &Key| Ok(schemas_of(&edge.policy.load(), &version));
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}

fn schemas_of(policy: &Policy, version: &ServableVersion) -> Content {
    let schemas = Schemas::new(policy, version);
    let dialect = "https://json-schema.org/draft/2020-12/schema";
    let whole = |mut schema: Value| {
        schema["$schema"] = json!(dialect);
        schema
    };
    Content::json(&VersionSchemas {
        model: version.id().name.clone(),
        version: version.id().version.clone(),
        request: whole(schemas.request()),
        response: whole(schemas.response()),
        batch_request: whole(schemas.batch_request()),
        batch_response: whole(schemas.batch_response()),
    })
}

/// Where the paths begin: under the path at which a proxy says that it serves them, for tools that cannot
/// resolve a relative address; else relative to the document, which holds behind a proxy as well.
fn server_url(headers: &HeaderMap, relative: &str) -> String {
    forwarded::prefix(headers).unwrap_or(relative).to_owned()
}

/// The whole document; it names no models but those that its reader may know of.
fn whole(edge: &Edge, scope: &Scope, server: &str) -> Content {
    let (snapshot, policy) = (edge.registry.snapshot(), edge.policy.load_full());
    let mut general = Document::default();
    operations::general(&mut general, &policy);
    protocol::general(&mut general);
    general.default_model(&snapshot, &policy, scope);
    // They stand in the part of the model itself.
    general.schemas.clear();
    let fragments = fragments_of(edge, &snapshot, &policy, scope);
    if fragments.iter().any(|fragment| fragment.has_path(protocol::STATISTICS)) {
        // The model of that name is described there as well.
        general.paths.shift_remove(protocol::STATISTICS);
    }
    document("Guesthouse", server, &general, &fragments)
}

/// The parts about the models in the scope, by name.
fn fragments_of(
    edge: &Edge,
    snapshot: &Snapshot,
    policy: &Arc<Policy>,
    scope: &Scope,
) -> Vec<Arc<Fragment>> {
    let fragments = &edge.pages.fragments;
    fragments.forget_others(snapshot);
    let models = scope.models(snapshot).map(|(name, versions)| {
        let answering = answering(snapshot, name, &Selector::Default);
        let loaded: Vec<_> =
            versions.versions.values().filter_map(VersionState::servable).collect();
        let mut made_of: Vec<_> = loaded.iter().map(|version| version.key()).collect();
        // The one for which nothing is said, which may be none, comes first.
        made_of.insert(0, answering.as_ref().map_or(0, |version| version.key()));
        fragments.get(name, policy, made_of, || {
            let mut document = Document::default();
            document.model(policy, name, answering.as_deref(), &loaded);
            document
        })
    });
    models.collect()
}

/// A document: what is not about single models, and the parts that are.
fn document(title: &str, server: &str, general: &Document, fragments: &[Arc<Fragment>]) -> Content {
    let info = json!({
        "title": title,
        "version": env!("CARGO_PKG_VERSION"),
        "description": "Predictions of the models that this server has loaded.",
    });
    let security_schemes = json!({
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    });
    let servers = json!([{"url": server}]);
    let security = json!([{"key": []}, {"bearer": []}]);
    let general = Fragment::new(general);
    let all = || std::iter::once(&general).chain(fragments.iter().map(|it| &**it));
    let common = members(&schemas::common());
    let schemas = join(std::iter::once(&*common).chain(all().map(|part| &*part.schemas)));
    let responses = Value::Object(operations::responses());
    let (tags, paths) = (join(all().map(|part| &*part.tags)), join(all().map(|part| &*part.paths)));
    let text = format!(
        r#"{{"openapi":"3.1.0","info":{info},"servers":{servers},"security":{security},"tags":[{tags}],"paths":{{{paths}}},"components":{{"schemas":{{{schemas}}},"responses":{responses},"securitySchemes":{security_schemes}}}}}"#
    );
    Content { content_type: "application/json", bytes: text.into_bytes() }
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
    fn default_model(&mut self, snapshot: &Snapshot, policy: &Policy, scope: &Scope) {
        let mut names = snapshot.models.keys();
        let only = names.next().filter(|_| names.next().is_none());
        let name = policy.default_model.as_ref().or(only).filter(|name| scope.has(name));
        let Some(name) = name else { return };
        let Some(versions) = snapshot.models.get(name) else { return };
        self.tag("default model", &format!("The paths that name no model: they mean {name}."));
        if let Some(version) = answering(snapshot, name, &Selector::Default) {
            let (schemas, tag) = (&Schemas::new(policy, &version), "default model");
            self.predict(&Operations { path: "", tag, schemas, takes_selector: true });
        }
        let loaded = versions.versions.values().filter_map(VersionState::servable);
        let mut majors: Vec<_> = loaded.map(|version| version.id().version.major).collect();
        majors.dedup();
        for major in majors {
            if let Some(version) = answering(snapshot, name, &Selector::major(major)) {
                let (path, tag) = (&format!("/v{major}"), "default model");
                let schemas = &Schemas::new(policy, &version);
                self.predict(&Operations { path, tag, schemas, takes_selector: false });
            }
        }
    }

    /// The paths of one model: of the version that answers requests that name none, if one does, and of
    /// those that are loaded.
    fn model(
        &mut self,
        policy: &Policy,
        name: &ModelName,
        answering: Option<&ServableVersion>,
        loaded: &[&Arc<ServableVersion>],
    ) {
        let tag = name.as_str();
        let described = answering.and_then(|version| version.metadata().description.clone());
        self.tag(tag, &described.unwrap_or_default());
        operations::catalogue(self, name, !loaded.is_empty());
        if !loaded.is_empty() {
            protocol::model(self, name);
        }
        if let Some(version) = answering {
            let (path, schemas) = (&format!("/models/{name}"), &Schemas::new(policy, version));
            self.predict(&Operations { path, tag, schemas, takes_selector: true });
        }
        for version in loaded {
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
) -> Option<Arc<ServableVersion>> {
    let found = router::explain(snapshot, model, selector, Instant::now()).ok()?;
    found.into_iter().next().map(|(version, ..)| version)
}
