//! `/admin/v1/keys`: making, listing and revoking keys. Neither a list nor a stored response contains a
//! key.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::{
    Admin, ChangeContext, EmptyRequest, Shared, change_response, read_json, stored, with_log,
};
use crate::api::keys::{CreateKeyRequest, KeyChange, KeyList};
use crate::edge::error::ApiError;
use crate::edge::request_log::RequestLog;
use guesthouse_control::control::{ChangeOptions, Control, ControlError, KeyChangeOutcome, NewKey};
use guesthouse_control::keys::{ScopesError, Timestamp};
use guesthouse_runtime::clock;

/// `GET /admin/v1/keys`
pub(super) async fn list(
    State(admin): Shared,
    headers: HeaderMap,
) -> Result<Json<KeyList>, ApiError> {
    admin.authorize(&headers)?;
    let (keys, now) = (admin.control.keys(), clock::now());
    let configured = keys.configured().into_iter().map(|key| key.view(now));
    let stored = keys.stored().into_iter().map(|stored| stored.view(now));
    Ok(Json(KeyList { keys: configured.chain(stored).map(Into::into).collect() }))
}

/// `POST /admin/v1/keys`
pub(super) async fn create(admin: Shared, query: RawQuery, request: Request) -> Response {
    let prepare = |body: CreateKeyRequest, context: &ChangeContext| {
        let malformed =
            |error: String| ApiError::malformed(format!("the body is malformed: {error}"));
        let ask = context.ask(&("create_key", &body));
        let CreateKeyRequest { name, scopes, expires, rate } = body;
        let scopes = scopes.try_into();
        let scopes = scopes.map_err(|error: ScopesError| malformed(error.to_string()))?;
        let expires = expires.map(|text| Timestamp::parse_expiry(&text, clock::now())).transpose();
        let expires = expires.map_err(|_error| {
            malformed("`expires` is a future time, like 2027-01-01T00:00:00Z or 90d".to_owned())
        })?;
        let new = NewKey { name, scopes, expires, rate };
        Ok((ask, move |control: &Control, ask: &ChangeOptions| control.create_key(new, ask)))
    };
    change(admin, query, request, prepare).await
}

/// `DELETE /admin/v1/keys/{id}`
pub(super) async fn revoke(
    admin: Shared,
    Path(id): Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let prepare = |_: EmptyRequest, context: &ChangeContext| {
        let ask = context.ask(&("revoke_key", &id));
        Ok((ask, move |control: &Control, ask: &ChangeOptions| control.revoke_key(&id, ask)))
    };
    change(admin, query, request, prepare).await
}

/// Make the change that the request describes.
async fn change<T: DeserializeOwned, C>(
    State(admin): Shared,
    RawQuery(query): RawQuery,
    request: Request,
    prepare: impl FnOnce(T, &ChangeContext) -> Result<(ChangeOptions, C), ApiError>,
) -> Response
where
    C: FnOnce(&Control, &ChangeOptions) -> Result<KeyChangeOutcome, ControlError> + Send + 'static,
{
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let (parts, body) = request.into_parts();
    let outcome = async {
        let admin: &Arc<Admin> = &admin;
        let context = ChangeContext::new(admin, &parts.headers, query.as_deref(), &mut log)?;
        if context.query.promote.is_some() || context.query.expected_revision.is_some() {
            // Names and ids already tell whether somebody else was faster.
            let message = "keys have no revisions and are not promoted";
            return Err(ApiError::malformed(message));
        }
        let (ask, change) = prepare(read_json(&parts.headers, body, admin).await?, &context)?;
        let control = Arc::clone(&admin.control);
        // Waits for the disk. It continues if the client leaves.
        let work = tokio::task::spawn_blocking(move || change(&control, &ask));
        match work.await.map_err(|_panic| ApiError::internal())?? {
            KeyChangeOutcome::Made(changed) => Ok((KeyChange::from(*changed), false)),
            KeyChangeOutcome::Replayed(text) => Ok((stored(&text)?, true)),
        }
    };
    let outcome = outcome.await;
    let response = match outcome {
        Ok((body, is_replayed)) => {
            let mut response = change_response(body, is_replayed, log.request_id.as_str());
            // It may contain a secret.
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => error.into_response(),
    };
    with_log(response, log)
}
