//! `POST /cache/purge`: the result cache forgets, for whoever bears `admin.http_token`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq;

use super::World;
use crate::error::{Error, ErrorKind};
use crate::session::purge::{self, Purge, TableName};

/// What is to be forgotten; of all databases if none is named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    database: Option<String>,
    table: Option<String>,
    statement: Option<String>,
}

/// Carries the request out, and answers with how many answers went from this process's memory.
pub(super) async fn purge(
    State(world): State<Arc<dyn World>>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Response {
    if let Some(refused) = refusal(world.as_ref(), &headers) {
        return refused;
    }
    let wanted = match wanted {
        Ok(Query(wanted)) => wanted,
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let Some(what) = what(&wanted) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "give table=schema.name or statement=fingerprint (32 digits), or neither",
        );
    };
    let mut databases = world.databases();
    if let Some(name) = &wanted.database {
        databases.retain(|database| database.config.name == *name);
        if databases.is_empty() {
            return refuse(StatusCode::NOT_FOUND, "there is no such database");
        }
    }
    tracing::info!(?wanted, "purge over HTTP");
    match purge::purge(&databases, &what).await {
        Ok(entries) => Json(json!({ "entries": entries })).into_response(),
        Err(error) => refuse(status(&error), &error.to_string()),
    }
}

fn what(wanted: &Wanted) -> Option<Purge> {
    match (&wanted.table, &wanted.statement) {
        (None, None) => Some(Purge::All),
        (Some(table), None) => TableName::parse(table).map(Purge::Table),
        (None, Some(digits)) => purge::fingerprint(digits).map(Purge::Statement),
        (Some(_), Some(_)) => None,
    }
}

/// What is said to who does not bear the token.
fn refusal(world: &dyn World, headers: &HeaderMap) -> Option<Response> {
    let Some(token) = world.token() else {
        return Some(refuse(StatusCode::FORBIDDEN, "nothing can be changed over HTTP: admin.http_token is not set"));
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| bool::from(given.ct_eq(token.expose().as_bytes()))) {
        return None;
    }
    let mut refused = refuse(StatusCode::UNAUTHORIZED, "this needs the token: Authorization: Bearer ...");
    refused.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    Some(refused)
}

fn status(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::Cache => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::NOT_FOUND,
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}
