//! Cached responses about many models ("pages"). A page is rendered on a thread of its own, once for all
//! concurrent requests, and cached until anything that it shows changes.
//!
//! A page is a function of its [`PageKey`] (which page, for which models, in which encoding) and a [`PageState`]
//! (the snapshot, the policy, the suspended versions). Pages with measurements depend on more than that.
//! As long as they are small, they are rendered for each request, unless one is about to be rendered. The
//! cache holds no versions, so a draining version is dropped while its pages are still cached.

mod cache;
mod coding;
pub(super) mod fragments;

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

pub(super) use self::cache::MemorySize;
use self::cache::{RenderCache, RenderThreads};
pub(super) use self::coding::Coding;
use self::fragments::Fragments;
use super::compress::Uncompressed;
use super::policy::Policy;
use guesthouse_control::keys::Caller;
use guesthouse_control::registry::{ModelVersions, Snapshot, VersionState};
use guesthouse_model::{ModelName, VersionId};

/// The caches of pages.
pub struct Pages {
    pub(super) bodies: Arc<RenderCache<PageKey, PageState, Page>>,
    pub(super) types: Arc<RenderCache<PageKey, PageState, GrpcTypes>>,
    /// The parts of the OpenAPI document, by model.
    pub(super) fragments: Fragments,
}

impl Pages {
    /// Start the threads, with empty caches.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let threads = RenderThreads::start()?;
        let (bodies, types) = (RenderCache::new(threads.clone()), RenderCache::new(threads));
        let (bodies, types) = (Arc::new(bodies), Arc::new(types));
        Ok(Self { bodies, types, fragments: Fragments::default() })
    }
}

/// The kind of a page.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PageKind {
    /// The OpenAPI document of the server, with the URL at which its paths begin.
    OpenApi { server: String },
    /// The OpenAPI document of one model.
    ModelOpenApi { model: ModelName, server: String },
    /// The JSON Schemas of a version.
    Schema(VersionId),
    /// The `.proto` of a version.
    Proto(VersionId),
    /// Every model with its versions.
    Models,
    /// One model with its versions.
    Model(ModelName),
    /// The index of the model repository, as JSON.
    Index { only_ready: bool },
    /// The index of the model repository, as a gRPC message.
    IndexMessage { only_ready: bool },
    /// The statistics of a model, or of all models, as JSON.
    Statistics(Option<ModelName>),
    /// The statistics of a model, or of all models, as a gRPC message.
    StatisticsMessage(Option<ModelName>),
    /// The metrics.
    Metrics { is_open_metrics: bool },
    /// The types of gRPC services.
    Types,
}

/// The models that a key may see. Keys that may see the same models share pages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ModelScope {
    All,
    Models(BTreeSet<ModelName>),
}

impl ModelScope {
    pub(super) fn from_caller(caller: &Caller) -> Self {
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

    /// The models of the snapshot that are visible, by name.
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

/// Identifies a page in the cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageKey {
    pub(super) kind: PageKind,
    pub(super) scope: ModelScope,
    pub(super) coding: Coding,
}

impl PageKey {
    pub(super) fn new(kind: PageKind, scope: ModelScope, headers: &HeaderMap) -> Self {
        Self { kind, scope, coding: Coding::accepted(headers) }
    }

    /// The key of a page that is never compressed.
    pub(super) fn plain(kind: PageKind, scope: ModelScope) -> Self {
        Self { kind, scope, coding: Coding::Identity }
    }
}

/// The state of the server that most pages depend on.
#[derive(Clone)]
pub(super) struct PageState {
    generation: u64,
    policy: Arc<Policy>,
    /// A hash of the suspended versions, which are not part of the snapshot.
    suspended: u64,
}

impl PartialEq for PageState {
    fn eq(&self, other: &Self) -> bool {
        self.generation == other.generation
            && self.suspended == other.suspended
            && Arc::ptr_eq(&self.policy, &other.policy)
    }
}

impl PageState {
    pub(super) fn new(snapshot: &Snapshot, policy: Arc<Policy>, scope: &ModelScope) -> Self {
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

/// A page as it is sent.
pub(super) struct Page {
    bytes: Bytes,
    content_type: &'static str,
    coding: Coding,
    /// The entity tag of the bytes, for pages that support conditional requests.
    tag: Option<HeaderValue>,
}

impl MemorySize for Page {
    fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The content of a page before it is compressed.
pub(super) struct PageContent {
    pub(super) content_type: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl PageContent {
    pub(super) fn json(value: &impl Serialize) -> Self {
        let bytes = serde_json::to_vec(value).expect("pages are texts and numbers");
        Self { content_type: "application/json", bytes }
    }
}

impl Page {
    pub(super) fn new(content: PageContent, key: &PageKey) -> Self {
        let PageContent { content_type, bytes } = content;
        let (bytes, coding) = key.coding.encode(bytes);
        let has_tag = match key.kind {
            PageKind::OpenApi { .. }
            | PageKind::ModelOpenApi { .. }
            | PageKind::Schema(_)
            | PageKind::Proto(_)
            | PageKind::Models
            | PageKind::Model(_) => true,
            PageKind::Index { .. }
            | PageKind::IndexMessage { .. }
            | PageKind::Statistics(_)
            | PageKind::StatisticsMessage(_)
            | PageKind::Metrics { .. }
            | PageKind::Types => false,
        };
        // A hash of the bytes as they are sent, so that the tag is strong.
        let tag = has_tag.then(|| format!("\"{}\"", blake3::hash(&bytes).to_hex()));
        let tag = tag.and_then(|tag| HeaderValue::try_from(tag).ok());
        Self { bytes: bytes.into(), content_type, coding, tag }
    }

    /// The bytes of a page whose key is [`PageKey::plain`].
    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The response to a request with these headers.
    pub(super) fn respond(&self, request: &HeaderMap) -> Response {
        let is_known = self.tag.as_ref().is_some_and(|tag| matches_tag(request, tag));
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
            // The page is for this key only, and valid until the next change.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        }
        // The page is compressed once, and not again by the middleware.
        response.extensions_mut().insert(Uncompressed);
        response
    }
}

/// Whether `If-None-Match` contains the tag.
fn matches_tag(request: &HeaderMap, tag: &HeaderValue) -> bool {
    let values = request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut names = values.flat_map(|value| value.split(',').map(str::trim));
    // Proxies may have weakened the tag.
    names.any(|name| name == "*" || name.trim_start_matches("W/").as_bytes() == tag.as_bytes())
}

/// The types of gRPC services.
pub(super) struct GrpcTypes {
    pub(super) pool: DescriptorPool,
    /// The approximate memory of the types.
    pub(super) bytes: usize,
}

impl MemorySize for GrpcTypes {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_body_is_not_sent_again() {
        let request = |value: &str| {
            HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::try_from(value).unwrap())])
        };
        let content = PageContent::json(&"body");
        let page = Page::new(content, &PageKey::plain(PageKind::Models, ModelScope::All));
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
        let counted = Page::new(
            PageContent::json(&1),
            &PageKey::plain(PageKind::Statistics(None), ModelScope::All),
        );
        assert_eq!(counted.respond(&request("*")).status(), 200);
    }
}
