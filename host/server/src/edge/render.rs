//! Rendering of cached pages from the state of the server.

use std::sync::Arc;

use super::error::ApiError;
use super::pages::{Content, Key, Kind, Page, Scope, State, Types};
use super::state::Edge;

impl Edge {
    /// The page, rendered by `make` unless a current one is cached.
    pub(super) async fn page(
        self: &Arc<Self>,
        key: Key,
        make: impl FnOnce(&Self, &Key) -> Result<Content, ApiError> + Send + 'static,
    ) -> Result<Arc<Page>, ApiError> {
        let state = self.state_of(&key);
        let (edge, same) = (Arc::clone(self), key.clone());
        let make = move || make(&edge, &same).map(|content| Page::new(content, &same));
        self.pages.bodies.get(key, state, make).await
    }

    /// The types of the gRPC services of the models in the scope.
    pub(super) async fn types(
        self: &Arc<Self>,
        scope: Scope,
        make: impl FnOnce(&Self, &Scope) -> Types + Send + 'static,
    ) -> Result<Arc<Types>, ApiError> {
        let key = Key::plain(Kind::Types, scope);
        let state = self.state_of(&key);
        let (edge, scope) = (Arc::clone(self), key.scope.clone());
        self.pages.types.get(key, state, move || Ok(make(&edge, &scope))).await
    }

    /// Computes the state that a page depends on; none for pages with measurements, which always change.
    fn state_of(self: &Arc<Self>, key: &Key) -> impl Fn() -> Option<State> + Send + use<> {
        let (edge, key) = (Arc::clone(self), key.clone());
        move || match key.kind {
            Kind::Statistics(_) | Kind::StatisticsMessage(_) | Kind::Metrics { .. } => None,
            Kind::OpenApi { .. }
            | Kind::ModelOpenApi { .. }
            | Kind::Schema(_)
            | Kind::Proto(_)
            | Kind::Models
            | Kind::Model(_)
            | Kind::Index { .. }
            | Kind::IndexMessage { .. }
            | Kind::Types => {
                let (snapshot, policy) = (edge.registry.snapshot(), edge.policy.load_full());
                Some(State::new(&snapshot, policy, &key.scope))
            }
        }
    }
}
