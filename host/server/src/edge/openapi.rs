//! The OpenAPI 3.1 documents of the public listener, rendered from the loaded versions whenever they
//! change, so that they always describe what is served. They need a key, because names are confidential.
//!
//! The fragment about a model is rendered once for each set of its versions and cached. A document joins
//! such fragments, so that a change of one model among a thousand is cheap.

mod operations;
mod protocol;
mod schemas;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use serde_json::{Value, json};

use self::operations::Operations;
use self::schemas::Schemas;
use super::catalogue::{known_model, known_version};
use super::forwarded;
use super::pages::fragments::{Document, Fragment, join, members};
use super::pages::{ModelScope, PageContent, PageKey, PageKind};
use super::policy::Policy;
use super::request_log::RequestLog;
use super::state::{Edge, EdgeState};
use crate::api::catalogue::VersionSchemas;
use guesthouse_control::registry::{Snapshot, VersionState};
use guesthouse_control::router;
use guesthouse_model::{ModelName, Selector};
use guesthouse_runtime::version::ServableVersion;

/// `GET /openapi.json`
pub(super) async fn server(State(edge): EdgeState, parts: Parts) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        let caller = edge.admit_reader_of_all(&parts.headers, &mut log)?;
        let server = server_url(&parts.headers, ".");
        let kind = PageKind::OpenApi { server: server.clone() };
        let key = PageKey::new(kind, ModelScope::from_caller(&caller), &parts.headers);
        let make = move |edge: &Edge, key: &PageKey| Ok(whole(edge, &key.scope, &server));
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

/// `GET /models/{model}/openapi.json`
pub(super) async fn model(
    State(edge): EdgeState,
    Path(model): Path<String>,
    parts: Parts,
) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        let model = known_model(&edge, &model, &parts.headers, &mut log)?;
        let server = server_url(&parts.headers, "../..");
        let kind = PageKind::ModelOpenApi { model: model.clone(), server: server.clone() };
        let key = PageKey::new(kind, ModelScope::only(&model), &parts.headers);
        let make = move |edge: &Edge, key: &PageKey| {
            let (snapshot, policy) = (edge.registry.snapshot(), edge.policy.load_full());
            let fragments = fragments_of(edge, &snapshot, &policy, &key.scope);
            let title = format!("Guesthouse: {model}");
            Ok(document(&title, &server, &Document::default(), &fragments))
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

/// `GET /models/{model}/versions/{selector}/schema`
pub(super) async fn schema(
    State(edge): EdgeState,
    Path((model, selector)): Path<(String, String)>,
    parts: Parts,
) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        let path = (&*model, &*selector);
        let version = known_version(&edge, path, &parts.headers, &mut log)?;
        let id = version.id();
        let key =
            PageKey::new(PageKind::Schema(id.clone()), ModelScope::only(&id.name), &parts.headers);
        let make = move |edge: &Edge, _: &PageKey| Ok(schemas_of(&edge.policy.load(), &version));
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}

fn schemas_of(policy: &Policy, version: &ServableVersion) -> PageContent {
    let schemas = Schemas::new(policy, version);
    let dialect = "https://json-schema.org/draft/2020-12/schema";
    let whole = |mut schema: Value| {
        schema["$schema"] = json!(dialect);
        schema
    };
    PageContent::json(&VersionSchemas {
        model: version.id().name.clone(),
        version: version.id().version.clone(),
        request: whole(schemas.request()),
        response: whole(schemas.response()),
        batch_request: whole(schemas.batch_request()),
        batch_response: whole(schemas.batch_response()),
    })
}

/// The URL at which paths begin. A trusted proxy can name its prefix, for tools that cannot resolve a
/// relative URL; otherwise the URL is relative to the document, which also works behind a proxy.
fn server_url(headers: &HeaderMap, relative: &str) -> String {
    forwarded::prefix(headers).unwrap_or(relative).to_owned()
}

/// The document of the server, with the models of the scope only.
fn whole(edge: &Edge, scope: &ModelScope, server: &str) -> PageContent {
    let (snapshot, policy) = (edge.registry.snapshot(), edge.policy.load_full());
    let mut general = Document::default();
    operations::general(&mut general, &policy);
    protocol::general(&mut general);
    general.default_model(&snapshot, &policy, scope);
    // They are part of the fragment of the model.
    general.schemas.clear();
    let fragments = fragments_of(edge, &snapshot, &policy, scope);
    if fragments.iter().any(|fragment| fragment.has_path(protocol::STATISTICS)) {
        // The fragment of the model with that name describes the path.
        general.paths.shift_remove(protocol::STATISTICS);
    }
    document("Guesthouse", server, &general, &fragments)
}

/// The fragments of the models in the scope, by name.
fn fragments_of(
    edge: &Edge,
    snapshot: &Snapshot,
    policy: &Arc<Policy>,
    scope: &ModelScope,
) -> Vec<Arc<Fragment>> {
    let fragments = &edge.pages.fragments;
    fragments.forget_others(snapshot);
    let models = scope.models(snapshot).map(|(name, versions)| {
        let answering = answering(snapshot, name, &Selector::Default);
        let loaded: Vec<_> =
            versions.versions.values().filter_map(VersionState::servable).collect();
        let mut made_of: Vec<_> = loaded.iter().map(|version| version.key()).collect();
        // The version of requests without a selector comes first; 0 if there is none.
        made_of.insert(0, answering.as_ref().map_or(0, |version| version.key()));
        fragments.get(name, policy, made_of, || {
            let mut document = Document::default();
            document.model(policy, name, answering.as_deref(), &loaded);
            document
        })
    });
    models.collect()
}

/// Join a document from its general part and the fragments of models.
fn document(
    title: &str,
    server: &str,
    general: &Document,
    fragments: &[Arc<Fragment>],
) -> PageContent {
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
    let mut common = schemas::common();
    let protocol = protocol::schemas().into_iter();
    common.extend(protocol.map(|(name, schema)| (name.to_owned(), schema)));
    let common = members(&common);
    let schemas = join(std::iter::once(&*common).chain(all().map(|part| &*part.schemas)));
    let responses = Value::Object(operations::responses());
    let (tags, paths) = (join(all().map(|part| &*part.tags)), join(all().map(|part| &*part.paths)));
    let text = format!(
        r#"{{"openapi":"3.1.0","info":{info},"servers":{servers},"security":{security},"tags":[{tags}],"paths":{{{paths}}},"components":{{"schemas":{{{schemas}}},"responses":{responses},"securitySchemes":{security_schemes}}}}}"#
    );
    PageContent { content_type: "application/json", bytes: text.into_bytes() }
}

impl Document {
    /// Describe the paths that name no model.
    fn default_model(&mut self, snapshot: &Snapshot, policy: &Policy, scope: &ModelScope) {
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

    /// Describe the paths of one model: of the version that answers requests without a selector, if there
    /// is one, and of every loaded version.
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

/// The version with the largest share of the requests with the selector.
fn answering(
    snapshot: &Snapshot,
    model: &ModelName,
    selector: &Selector,
) -> Option<Arc<ServableVersion>> {
    let found = router::explain(snapshot, model, selector, Instant::now()).ok()?;
    found.into_iter().next().map(|(version, ..)| version)
}
