//! `/admin/v1/log`: the levels of the log, which can change while the server runs.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::{Admin, Shared, read_json, with_log};
use crate::api::status::LogFilter;
use crate::edge::access;
use crate::edge::error::{ApiError, ErrorCode};
use crate::edge::request_log::RequestLog;
use crate::observe::logs::{self, FilterError};

/// `GET /admin/v1/log`
pub(super) async fn show(State(admin): Shared, request: Request) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let outcome =
        access::authenticate_admin(admin.control.keys(), request.headers()).map(|actor| {
            log.caller = Some(actor.name().to_owned());
            current()
        });
    with_log(outcome.into_response(), log)
}

/// `PUT /admin/v1/log`
pub(super) async fn set(State(admin): Shared, request: Request) -> Response {
    let mut log = RequestLog::new(request.headers(), request.extensions());
    let outcome = try_set(&admin, request, &mut log).await;
    with_log(outcome.into_response(), log)
}

async fn try_set(
    admin: &Admin,
    request: Request,
    log: &mut RequestLog,
) -> Result<Json<LogFilter>, ApiError> {
    let actor =
        access::authenticate_admin(admin.control.keys(), request.headers())?.name().to_owned();
    log.caller = Some(actor.clone());
    let (parts, body) = request.into_parts();
    let LogFilter { filter } = read_json(&parts.headers, body, admin).await?;
    logs::set_filter(&filter).map_err(|error| match error {
        FilterError::NoLog => ApiError::new(ErrorCode::Internal, "there is no log"),
        FilterError::Empty
        | FilterError::UnknownWord(_)
        | FilterError::UnknownLevel(_)
        | FilterError::MalformedTarget(_)
        | FilterError::NothingOfOurs
        | FilterError::TooLong => {
            ApiError::new(ErrorCode::UnacceptableInput, format!("the filter: {error}"))
        }
    })?;
    let filter = guesthouse_model::terminal::reason(&filter);
    tracing::info!(target: "change", actor, filter, "log levels changed");
    Ok(current())
}

fn current() -> Json<LogFilter> {
    Json(LogFilter { filter: logs::filter().unwrap_or_default() })
}
