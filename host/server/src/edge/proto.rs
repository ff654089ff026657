//! The gRPC service of a version as a `.proto` file.

use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::response::Response;

use super::observe::{Account, answered};
use super::pages::{Content, Key, Kind, Scope};
use super::{Edge, Shared, catalogue};
use crate::typed::{CompatibleRange, ModelService};

/// `GET /models/{model}/versions/{selector}/proto`
pub(super) async fn proto(
    State(edge): Shared,
    Path((model, selector)): Path<(String, String)>,
    parts: Parts,
) -> Response {
    let mut account = Account::of_head(&parts.headers, &parts.extensions);
    let outcome = async {
        let path = (&*model, &*selector);
        let version = catalogue::known_version(&edge, path, &parts.headers, &mut account)?;
        let id = version.id();
        let key = Key::new(Kind::Proto(id.clone()), Scope::only(&id.name), &parts.headers);
        let make = move |_: &Edge, _: &Key| {
            let id = version.id();
            let service = ModelService::new(
                &id.name,
                CompatibleRange::from_version(&id.version),
                version.signature(),
            );
            let content_type = "text/plain; charset=utf-8";
            Ok(Content { content_type, bytes: service.proto().into_bytes() })
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    answered(outcome, account)
}
