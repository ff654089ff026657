//! `/admin/v1/keys`: making keys, listing and revoking them. Neither a list nor a stored answer has
//! anything of a key in it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Admin, Asked, Nothing, REPLAYED_HEADER, Shared, error, read_json, with_account};
use crate::edge::error::ApiError;
use crate::edge::observe::Account;
use guesthouse_control::control::{ChangeOptions, Control, ControlError, KeyChangeOutcome, NewKey};
use guesthouse_control::keys::{KeyName, Scope, Timestamp};
use guesthouse_control::rate::Rate;
use guesthouse_runtime::clock;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: KeyName,
    scopes: BTreeSet<Scope>,
    /// A time, or after which time.
    expires: Option<String>,
    rate: Option<Rate>,
}

/// `GET /admin/v1/keys`
pub(super) async fn list(
    State(admin): Shared,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    admin.authorize(&headers)?;
    let (keys, now) = (admin.control.keys(), clock::now());
    let configured = keys.configured().into_iter().map(|key| key.view(now));
    let stored = keys.stored().into_iter().map(|stored| stored.view(now));
    let shown: Vec<_> = configured.chain(stored).collect();
    Ok(Json(json!({ "keys": shown })))
}

/// `POST /admin/v1/keys`
pub(super) async fn create(admin: Shared, query: RawQuery, request: Request) -> Response {
    let change = |body: CreateBody, asked: &Asked| {
        let malformed =
            |error: String| ApiError::malformed(format!("the body is malformed: {error}"));
        let ask = asked.ask(&("create_key", &body));
        let CreateBody { name, scopes, expires, rate } = body;
        let scopes = scopes.try_into();
        let scopes = scopes
            .map_err(|error: guesthouse_control::keys::ScopesError| malformed(error.to_string()))?;
        let expires = expires.map(|text| Timestamp::parse_expiry(&text, clock::now())).transpose();
        let expires = expires.map_err(|_error| {
            malformed("`expires` is a time to come, like 2027-01-01T00:00:00Z or 90d".to_owned())
        })?;
        let new = NewKey { name, scopes, expires, rate };
        Ok((ask, move |control: &Control, ask: &ChangeOptions| control.create_key(new, ask)))
    };
    answer(admin, query, request, change).await
}

/// `DELETE /admin/v1/keys/{id}`
pub(super) async fn revoke(
    admin: Shared,
    Path(id): Path<String>,
    query: RawQuery,
    request: Request,
) -> Response {
    let change = |_: Nothing, asked: &Asked| {
        let ask = asked.ask(&("revoke_key", &id));
        Ok((ask, move |control: &Control, ask: &ChangeOptions| control.revoke_key(&id, ask)))
    };
    answer(admin, query, request, change).await
}

/// ChangeOptions for the change that the request describes.
async fn answer<T: DeserializeOwned, C>(
    State(admin): Shared,
    RawQuery(query): RawQuery,
    request: Request,
    change: impl FnOnce(T, &Asked) -> Result<(ChangeOptions, C), ApiError>,
) -> Response
where
    C: FnOnce(&Control, &ChangeOptions) -> Result<KeyChangeOutcome, ControlError> + Send + 'static,
{
    let mut account = Account::of(&request);
    let (parts, body) = request.into_parts();
    let make = async {
        let admin: &Arc<Admin> = &admin;
        let asked = Asked::of(admin, &parts.headers, query.as_deref(), &mut account)?;
        let conditions = &asked.conditions;
        if conditions.promote.is_some() || conditions.expected_revision.is_some() {
            // Names and ids tell already whether somebody was faster.
            let message = "keys have no revisions and are not promoted";
            return Err(ApiError::malformed(message));
        }
        let (ask, change) = change(read_json(&parts.headers, body, admin).await?, &asked)?;
        let control = Arc::clone(&admin.control);
        // Waits for the disk; goes on if the caller leaves.
        let work = tokio::task::spawn_blocking(move || change(&control, &ask));
        Ok(work.await.map_err(|_panic| error::broken())??)
    };
    let outcome = make.await;
    let response = match outcome {
        Ok(answer) => answered(answer, account.request_id.as_str()),
        Err(error) => error.into_response(),
    };
    with_account(response, account)
}

fn answered(answer: KeyChangeOutcome, request_id: &str) -> Response {
    let (mut value, is_replayed) = match answer {
        KeyChangeOutcome::Made(changed) => (json!(changed), false),
        KeyChangeOutcome::Replayed(text) => (serde_json::from_str(&text).unwrap_or_default(), true),
    };
    value["request_id"] = request_id.into();
    let mut response = Json(value).into_response();
    // A secret may be in it.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if is_replayed {
        response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    response
}
