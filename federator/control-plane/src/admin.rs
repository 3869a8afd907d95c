//! The operator's socket: HTTP and JSON over a Unix socket that only this user can open.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /v1/join` `{"token"}` | `{"cluster", "federation", "generation"}` |
//! | `POST /v1/leave` | `{"leaving": true}`; it is over when `status` says `joined: false` |
//! | `GET /v1/rotations` | `{"rotations": [{"key", "phase", "waitingFor", …}]}` |
//! | `POST /v1/rotations` `{"key", "emergency"}` | the same; keys: `root`, `intermediate`, `publish-key` |
//! | `DELETE /v1/rotations/{key}` | the same; gives one up |
//! | `GET /v1/status` | everything at a glance |
//! | `GET /v1/exports`, `/v1/imports`, `/v1/clusters` | `{"exports": […]}`, … |
//! | `POST /v1/exports` `{"namespace", "name"}` | `{"namespace", "name", "file", "created"}` |
//! | `DELETE /v1/exports/{namespace}/{name}` | `{"namespace", "name", "removed": true}` |
//! | `POST /v1/service-account-tokens` `{"namespace", "serviceAccount", "expiresSeconds"}` | `{"token", "expiresAt"}` |
//!
//! An error is `{"error": "<one sentence>"}` with 400 (the request), 404, 409 (the state), 502 (the federation refused or
//! cannot be reached) or 500.

mod exports;
mod socket;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use federation_api::token::JoinToken;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::authority::OwnAuthority;
use crate::config::Config;
use crate::membership::MembershipError;
use crate::plane::{Joiner, PlaneHandle};
use crate::probe::Measurements;
use crate::proxies::Proxies;
use crate::rotation::{Key, RotationRefused, Rotations};
use crate::snapshot::Snapshot;
use crate::tokens::{MAX_LIFETIME, TokenKey, TokenKeyError};

pub use socket::AdminSocket;
pub(crate) use view::timestamp;

/// A token's life when nothing is said.
const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What the answers are made of.
#[derive(Clone)]
pub struct Admin {
    /// The configuration.
    pub config: Arc<Config>,
    /// The state.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who is connected.
    pub proxies: Proxies,
    /// What was measured.
    pub measurements: Measurements,
    /// Signs tokens.
    pub tokens: Arc<TokenKey>,
    /// Makes the cluster a member.
    pub joiner: Joiner,
    /// The cluster's own authority.
    pub authority: OwnAuthority,
    /// Replaces its keys, and the cluster's publish key.
    pub rotations: Rotations,
    /// Ends the membership.
    pub plane: PlaneHandle,
    /// Where names are answered.
    pub dns: Vec<SocketAddr>,
    /// What the program waits for.
    pub readiness: mesh_runtime::Readiness,
}

/// Why a request is not done.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    error: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl std::fmt::Display) -> Self {
        Self { status, error: error.to_string() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.error }))).into_response()
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl From<MembershipError> for Refusal {
    fn from(error: MembershipError) -> Self {
        use MembershipError as Error;
        let status = match &error {
            Error::OtherCluster { .. } | Error::OtherFederation { .. } => StatusCode::BAD_REQUEST,
            Error::NotNewer { .. } => StatusCode::CONFLICT,
            Error::Refused(_) => StatusCode::BAD_GATEWAY,
            Error::Unusable(_) | Error::State(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

impl From<RotationRefused> for Refusal {
    fn from(error: RotationRefused) -> Self {
        let status = match &error {
            RotationRefused::Conflict(_) => StatusCode::CONFLICT,
            RotationRefused::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

type Answer = Result<Response, Refusal>;

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/v1/join", post(join))
        .route("/v1/leave", post(leave))
        .route("/v1/rotations", get(async |State(admin): State<Admin>| rotations(&admin)).post(rotate))
        .route("/v1/rotations/{key}", delete(cancel_rotation))
        .route("/v1/status", get(async |State(admin): State<Admin>| Json(view::status(&admin))))
        .route("/v1/exports", get(async |State(admin): State<Admin>| Json(view::exports(&admin))).post(export))
        .route("/v1/exports/{namespace}/{name}", delete(unexport))
        .route("/v1/imports", get(async |State(admin): State<Admin>| Json(view::imports(&admin))))
        .route("/v1/clusters", get(async |State(admin): State<Admin>| Json(view::clusters(&admin))))
        .route("/v1/service-account-tokens", post(service_account_token))
        .with_state(admin)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinBody {
    token: String,
}

async fn join(State(admin): State<Admin>, body: Result<Json<JoinBody>, JsonRejection>) -> Answer {
    let Json(body) = body?;
    let token: JoinToken =
        body.token.trim().parse().map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("token: {error}")))?;
    let generation = admin.joiner.join(token).await?;
    let Config { cluster, federation, .. } = admin.config.as_ref();
    Ok(Json(json!({ "cluster": cluster, "federation": federation, "generation": generation })).into_response())
}

async fn leave(State(admin): State<Admin>) -> Answer {
    if admin.snapshots.borrow().generation.is_none() {
        return Err(Refusal::new(StatusCode::CONFLICT, "the cluster is not a member of a federation"));
    }
    admin.plane.leave();
    Ok(Json(json!({ "leaving": true })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    key: Key,
    #[serde(default)]
    emergency: bool,
}

fn rotations(admin: &Admin) -> Response {
    Json(json!({ "rotations": admin.rotations.status() })).into_response()
}

async fn rotate(State(admin): State<Admin>, body: Result<Json<RotateBody>, JsonRejection>) -> Answer {
    let Json(RotateBody { key, emergency }) = body?;
    admin.rotations.begin(key, emergency).await?;
    Ok(rotations(&admin))
}

async fn cancel_rotation(State(admin): State<Admin>, Path(key): Path<Key>) -> Answer {
    admin.rotations.cancel(key).await?;
    Ok(rotations(&admin))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportBody {
    namespace: String,
    name: String,
}

async fn export(State(admin): State<Admin>, body: Result<Json<ExportBody>, JsonRejection>) -> Answer {
    let Json(body) = body?;
    let (file, created) = exports::add(&admin, &body.namespace, &body.name).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let ExportBody { namespace, name } = body;
    let answer = json!({ "namespace": namespace, "name": name, "file": file, "created": created });
    Ok((status, Json(answer)).into_response())
}

async fn unexport(State(admin): State<Admin>, Path((namespace, name)): Path<(String, String)>) -> Answer {
    exports::remove(&admin, &namespace, &name).await?;
    Ok(Json(json!({ "namespace": namespace, "name": name, "removed": true })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TokenBody {
    namespace: String,
    service_account: String,
    #[serde(default)]
    expires_seconds: Option<u64>,
}

async fn service_account_token(State(admin): State<Admin>, body: Result<Json<TokenBody>, JsonRejection>) -> Answer {
    let Json(body) = body?;
    let lifetime = body.expires_seconds.map_or(DEFAULT_TOKEN_LIFETIME, Duration::from_secs);
    if lifetime.is_zero() || lifetime > MAX_LIFETIME {
        let allowed = format!("expiresSeconds: allowed are 1 to {}", MAX_LIFETIME.as_secs());
        return Err(Refusal::new(StatusCode::BAD_REQUEST, allowed));
    }
    let now = SystemTime::now();
    let token = admin.tokens.sign(&body.namespace, &body.service_account, lifetime, now).map_err(|error| {
        let status = match &error {
            TokenKeyError::Name(_) => StatusCode::BAD_REQUEST,
            TokenKeyError::State(_) | TokenKeyError::Key(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, error)
    })?;
    Ok(Json(json!({ "token": token, "expiresAt": view::timestamp(now + lifetime) })).into_response())
}
