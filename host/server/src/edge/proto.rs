//! The gRPC service of a version as a `.proto` file.

use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::response::Response;

use super::catalogue;
use super::pages::{ModelScope, PageContent, PageKey, PageKind};
use super::request_log::RequestLog;
use super::state::{Edge, EdgeState};
use crate::typed::{CompatibleRange, ModelService};

/// `GET /models/{model}/versions/{selector}/proto`
pub(super) async fn proto(
    State(edge): EdgeState,
    Path((model, selector)): Path<(String, String)>,
    parts: Parts,
) -> Response {
    let mut log = RequestLog::new(&parts.headers, &parts.extensions);
    let outcome = async {
        let path = (&*model, &*selector);
        let version = catalogue::known_version(&edge, path, &parts.headers, &mut log)?;
        let id = version.id();
        let key =
            PageKey::new(PageKind::Proto(id.clone()), ModelScope::only(&id.name), &parts.headers);
        let make = move |_: &Edge, _: &PageKey| {
            let id = version.id();
            let service = ModelService::new(
                &id.name,
                CompatibleRange::from_version(&id.version),
                version.signature(),
            );
            let content_type = "text/plain; charset=utf-8";
            Ok(PageContent { content_type, bytes: service.proto().into_bytes() })
        };
        Ok(edge.page(key, make).await?.respond(&parts.headers))
    };
    let outcome = outcome.await;
    log.attach_to(outcome)
}
