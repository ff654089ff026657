//! Rendering of cached pages from the state of the server.

use std::sync::Arc;

use super::error::ApiError;
use super::pages::{GrpcTypes, ModelScope, Page, PageContent, PageKey, PageKind, PageState};
use super::state::Edge;

impl Edge {
    /// The page, rendered by `make` unless a current one is cached.
    pub(super) async fn page(
        self: &Arc<Self>,
        key: PageKey,
        make: impl FnOnce(&Self, &PageKey) -> Result<PageContent, ApiError> + Send + 'static,
    ) -> Result<Arc<Page>, ApiError> {
        let state = self.state_of(&key);
        let (edge, same) = (Arc::clone(self), key.clone());
        let make = move || make(&edge, &same).map(|content| Page::new(content, &same));
        self.pages.bodies.get(key, state, make).await
    }

    /// The types of the gRPC services of the models in the scope.
    pub(super) async fn types(
        self: &Arc<Self>,
        scope: ModelScope,
        make: impl FnOnce(&Self, &ModelScope) -> GrpcTypes + Send + 'static,
    ) -> Result<Arc<GrpcTypes>, ApiError> {
        let key = PageKey::plain(PageKind::Types, scope);
        let state = self.state_of(&key);
        let (edge, scope) = (Arc::clone(self), key.scope.clone());
        self.pages.types.get(key, state, move || Ok(make(&edge, &scope))).await
    }

    /// Computes the state that a page depends on; none for pages with measurements, which always change.
    fn state_of(self: &Arc<Self>, key: &PageKey) -> impl Fn() -> Option<PageState> + Send + use<> {
        let (edge, key) = (Arc::clone(self), key.clone());
        move || match key.kind {
            PageKind::Statistics(_) | PageKind::StatisticsMessage(_) | PageKind::Metrics { .. } => {
                None
            }
            PageKind::OpenApi { .. }
            | PageKind::ModelOpenApi { .. }
            | PageKind::Schema(_)
            | PageKind::Proto(_)
            | PageKind::Models
            | PageKind::Model(_)
            | PageKind::Index { .. }
            | PageKind::IndexMessage { .. }
            | PageKind::Types => {
                let (snapshot, policy) = (edge.registry.snapshot(), edge.policy.load_full());
                Some(PageState::new(&snapshot, policy, &key.scope))
            }
        }
    }
}
