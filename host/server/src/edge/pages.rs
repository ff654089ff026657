//! Answers about many models: rendered on threads of their own, once for all who ask for the same one at
//! the same time, and kept while nothing that they show has changed.
//!
//! What an answer is a function of is its [`Key`] (which page, which models its reader may know of, how it
//! is compressed) and a [`State`] (the snapshot, the policy, which versions are suspended). Measurements
//! are more than that, so pages of them are rendered for each request that does not find one about to be
//! rendered, as long as they are small. No versions are held: a draining one goes while its pages are
//! still there.

mod coding;
pub(super) mod fragments;
mod table;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use prost_reflect::DescriptorPool;
use serde::Serialize;

pub(super) use self::coding::Coding;
use self::fragments::Fragments;
pub(super) use self::table::Weigh;
use self::table::{Table, Threads};
use super::compress::Uncompressed;
use super::policy::Policy;
use guesthouse_control::keys::Caller;
use guesthouse_control::registry::{ModelVersions, Snapshot, VersionState};
use guesthouse_model::{ModelName, VersionId};

/// What is kept of answers about many models.
pub struct Pages {
    pub(super) bodies: Arc<Table<Key, State, Page>>,
    pub(super) types: Arc<Table<Key, State, Types>>,
    /// The parts of the OpenAPI document, by model.
    pub(super) fragments: Fragments,
}

impl Pages {
    /// With nothing rendered yet.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let threads = Threads::start()?;
        let (bodies, types) = (Table::new(threads.clone()), Table::new(threads));
        let (bodies, types) = (Arc::new(bodies), Arc::new(types));
        Ok(Self { bodies, types, fragments: Fragments::default() })
    }
}

/// Which page it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The whole OpenAPI document, with the address at which its paths begin.
    OpenApi { server: String },
    /// The part of it about one model.
    ModelOpenApi { model: ModelName, server: String },
    /// The JSON Schemas of a version.
    Schema(VersionId),
    /// The `.proto` of a version.
    Proto(VersionId),
    /// Every model with its versions.
    Models,
    /// One model with its versions.
    Model(ModelName),
    /// The index of the model repository.
    Index { only_ready: bool },
    /// The same as a message of gRPC.
    IndexMessage { only_ready: bool },
    /// What has been counted of a model, or of all of them.
    Statistics(Option<ModelName>),
    /// The same as a message of gRPC.
    StatisticsMessage(Option<ModelName>),
    /// What Prometheus reads.
    Metrics { is_open_metrics: bool },
    /// The types of gRPC services.
    Types,
}

/// The models that the reader of a page may know of. Readers for whom they are the same share pages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    All,
    Models(BTreeSet<ModelName>),
}

impl Scope {
    pub(super) fn of(caller: &Caller) -> Self {
        caller.scopes().models().map_or(Self::All, Self::Models)
    }

    pub(super) fn only(model: &ModelName) -> Self {
        Self::Models(BTreeSet::from([model.clone()]))
    }

    pub(super) fn has(&self, model: &ModelName) -> bool {
        match self {
            Self::All => true,
            Self::Models(models) => models.contains(model),
        }
    }

    /// The models of the snapshot that it has, by name.
    pub(super) fn models<'a>(
        &'a self,
        snapshot: &'a Snapshot,
    ) -> Box<dyn Iterator<Item = (&'a ModelName, &'a ModelVersions)> + 'a> {
        match self {
            Self::All => Box::new(snapshot.models.iter()),
            Self::Models(models) => {
                Box::new(models.iter().filter_map(|name| snapshot.models.get_key_value(name)))
            }
        }
    }
}

/// What tells a page from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) scope: Scope,
    pub(super) coding: Coding,
}

impl Key {
    pub(super) fn new(kind: Kind, scope: Scope, headers: &HeaderMap) -> Self {
        Self { kind, scope, coding: Coding::accepted(headers) }
    }

    /// Of an answer that is not compressed, whatever its caller understands.
    pub(super) fn plain(kind: Kind, scope: Scope) -> Self {
        Self { kind, scope, coding: Coding::Identity }
    }
}

/// What most pages are a function of.
#[derive(Clone)]
pub(super) struct State {
    generation: u64,
    policy: Arc<Policy>,
    /// A hash of the versions that are suspended at the moment: breakers are not in the snapshot.
    suspended: u64,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.generation == other.generation
            && self.suspended == other.suspended
            && Arc::ptr_eq(&self.policy, &other.policy)
    }
}

impl State {
    pub(super) fn new(snapshot: &Snapshot, policy: Arc<Policy>, scope: &Scope) -> Self {
        let now = Instant::now();
        let mut hasher = DefaultHasher::new();
        let versions = scope.models(snapshot).flat_map(|(_, model)| model.versions.values());
        for version in versions.filter_map(VersionState::servable) {
            if !version.breaker().allows(now) {
                version.key().hash(&mut hasher);
            }
        }
        Self { generation: snapshot.generation, policy, suspended: hasher.finish() }
    }
}

/// A body as it is sent.
pub(super) struct Page {
    bytes: Bytes,
    content_type: &'static str,
    coding: Coding,
    /// Names the bytes, if they may be asked for again.
    tag: Option<HeaderValue>,
}

impl Weigh for Page {
    fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// What a page is made of, before it is compressed.
pub(super) struct Content {
    pub(super) content_type: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl Content {
    pub(super) fn json(value: &impl Serialize) -> Self {
        // What is told is made of texts and numbers.
        let bytes = serde_json::to_vec(value).unwrap_or_default();
        Self { content_type: "application/json", bytes }
    }
}

impl Page {
    pub(super) fn new(content: Content, key: &Key) -> Self {
        let Content { content_type, bytes } = content;
        let (bytes, coding) = key.coding.encode(bytes);
        let has_tag = match key.kind {
            Kind::OpenApi { .. }
            | Kind::ModelOpenApi { .. }
            | Kind::Schema(_)
            | Kind::Proto(_)
            | Kind::Models
            | Kind::Model(_) => true,
            Kind::Index { .. }
            | Kind::IndexMessage { .. }
            | Kind::Statistics(_)
            | Kind::StatisticsMessage(_)
            | Kind::Metrics { .. }
            | Kind::Types => false,
        };
        // Of the bytes as they are sent, so that it is a strong one.
        let tag = has_tag.then(|| format!("\"{}\"", blake3::hash(&bytes).to_hex()));
        let tag = tag.and_then(|tag| HeaderValue::try_from(tag).ok());
        Self { bytes: bytes.into(), content_type, coding, tag }
    }

    /// The bytes, which nothing has compressed.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The answer to a request with these headers.
    pub(super) fn respond(&self, request: &HeaderMap) -> Response {
        let is_known = self.tag.as_ref().is_some_and(|tag| is_named(request, tag));
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            Response::new(Body::from(self.bytes.clone()))
        };
        let headers = response.headers_mut();
        if !is_known {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
            if let Some(name) = self.coding.name() {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
            }
        }
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if let Some(tag) = &self.tag {
            headers.insert(ETAG, tag.clone());
            // What one key may see is nobody else's, and holds until the next change.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        }
        // What is compressed, is compressed once and elsewhere.
        response.extensions_mut().insert(Uncompressed);
        response
    }
}

/// Whether the caller has the bytes of that name.
fn is_named(request: &HeaderMap, tag: &HeaderValue) -> bool {
    let values = request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut names = values.flat_map(|value| value.split(',').map(str::trim));
    // A weak name, as proxies make of ours, is as good here.
    names.any(|name| name == "*" || name.trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

/// The types of gRPC services.
pub(super) struct Types {
    pub(super) pool: DescriptorPool,
    /// About the memory that it takes.
    pub(super) bytes: usize,
}

impl Weigh for Types {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_the_caller_has_is_not_sent_again() {
        let request = |value: &str| {
            HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::try_from(value).unwrap())])
        };
        let content = Content::json(&"body");
        let page = Page::new(content, &Key::plain(Kind::Models, Scope::All));
        let tag = page.tag.as_ref().unwrap().to_str().unwrap();
        for (named, status) in [
            (tag.to_owned(), 304),
            (format!("W/{tag}"), 304),
            (format!("\"other\", {tag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
            (tag.trim_matches('"').to_owned(), 200),
            (String::new(), 200),
        ] {
            assert_eq!(page.respond(&request(&named)).status(), status, "{named}");
        }
        assert_eq!(page.respond(&HeaderMap::new()).status(), 200);
        let counted = Page::new(Content::json(&1), &Key::plain(Kind::Statistics(None), Scope::All));
        assert_eq!(counted.respond(&request("*")).status(), 200);
    }
}
