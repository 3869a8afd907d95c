//! A control-plane's admin API over a real Unix socket, whose state a test decides.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Segments, State as Shared};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// What it answers, and what it was asked.
pub(crate) struct State {
    pub(crate) status: Value,
    pub(crate) exports: Vec<Value>,
    pub(crate) imports: Vec<Value>,
    pub(crate) clusters: Vec<Value>,
    /// Tokens that were handed over.
    pub(crate) tokens: Vec<String>,
    /// Rotations and departures that were asked for.
    pub(crate) wishes: Vec<Value>,
    /// `POST` and `DELETE` are answered with this.
    pub(crate) refusal: Option<(StatusCode, Value)>,
    /// Called with each question about the status or the exports, to let something happen meanwhile.
    pub(crate) meanwhile: Box<dyn FnMut(&mut Progress<'_>) + Send>,
    asked: u32,
}

/// What [`State::meanwhile`] may look at and change.
pub(crate) struct Progress<'a> {
    /// How often there was a question.
    pub(crate) asked: u32,
    pub(crate) status: &'a mut Value,
    pub(crate) exports: &'a mut Vec<Value>,
}

impl State {
    fn step(&mut self) {
        self.asked += 1;
        let mut progress = Progress { asked: self.asked, status: &mut self.status, exports: &mut self.exports };
        (self.meanwhile)(&mut progress);
    }
}

type Handle = Arc<Mutex<State>>;
type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

/// Listens until dropped.
pub(crate) struct ControlPlane {
    _directory: TempDir,
    socket: PathBuf,
    state: Handle,
    task: JoinHandle<()>,
}

impl ControlPlane {
    /// A member of a federation that works: see [`well`].
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let state = Arc::new(Mutex::new(well()));
        let router = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/join", post(join))
            .route("/v1/leave", post(leave))
            .route("/v1/rotations", get(rotations).post(rotate))
            .route("/v1/rotations/{key}", delete(cancel_rotation))
            .route("/v1/exports", get(exports).post(export))
            .route("/v1/exports/{namespace}/{name}", delete(unexport))
            .route("/v1/imports", get(imports))
            .route("/v1/clusters", get(clusters))
            .with_state(Arc::clone(&state));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { _directory: directory, socket, state, task }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An export's JSON.
pub(crate) fn export_of(namespace: &str, name: &str, conditions: &[(&str, &str, &str, &str)]) -> Value {
    let conditions = conditions.iter().map(
        |(kind, status, reason, message)| json!({"type": kind, "status": status, "reason": reason, "message": message}),
    );
    json!({"namespace": namespace, "name": name, "conditions": conditions.collect::<Vec<_>>(), "ready": 2, "endpoints": 3,
        "createdAt": "2026-01-01T00:00:00Z"})
}

fn well() -> State {
    let gateway = json!({"name": "a", "address": "127.2.0.4", "port": 15443, "region": "r", "zone": "z", "draining": false,
        "reachable": true, "measured": "session", "lastError": null, "roundTripUs": 420, "ageMs": 3_000, "lastSuccessAgeMs": 3_000});
    let west = json!({"cluster": "west", "connected": true, "suspect": false, "sinceMs": 1, "sinceAgeMs": 61_000,
        "appliedRevision": 7, "lastAppliedAgeMs": 1_500, "generation": 1, "quarantined": false, "bundle": true, "exports": 2,
        "gateways": [gateway], "alarms": []});
    let proxy = |kind, name| {
        json!({"name": name, "kind": kind, "identity": "spiffe://east.mesh.example/ns/shop/sa/cart",
        "connectedForMs": 9_000, "trustEpoch": 3, "error": null})
    };
    let own = json!({"name": "a", "address": "gw.east.example", "port": 15443, "region": "r", "zone": "z", "draining": false});
    State {
        status: json!({"cluster": "east", "federation": "mesh.example", "trustDomain": "east.mesh.example",
            "joined": true, "generation": 1, "synced": true, "waitingFor": [], "dns": ["127.1.0.3:53"],
            "federator": {"connected": true, "problem": null, "revision": 7, "incarnation": "i", "ageMs": 300},
            "trustBundle": {"connected": true, "problem": null, "revision": 3, "incarnation": "i", "ageMs": 4_000},
            "exports": 1, "imports": 4, "namespaces": ["shop"], "gateways": [own],
            "proxies": [proxy("sidecar", "cart-0"), proxy("sidecar", "cart-1"), proxy("gateway", "gw-0")],
            "manifests": {"problems": [], "problemCount": 0, "passedOver": {"ConfigMap": 2}},
            "clusters": [west], "ofALaterVersion": {}}),
        exports: Vec::new(),
        imports: Vec::new(),
        clusters: vec![west],
        tokens: Vec::new(),
        wishes: Vec::new(),
        refusal: None,
        meanwhile: Box::new(|_| {}),
        asked: 0,
    }
}

fn refused(state: &State) -> Result<(), (StatusCode, Json<Value>)> {
    state.refusal.clone().map_or(Ok(()), |(status, body)| Err((status, Json(body))))
}

async fn status(Shared(state): Shared<Handle>) -> Json<Value> {
    let mut state = state.lock().unwrap();
    state.step();
    Json(state.status.clone())
}

async fn exports(Shared(state): Shared<Handle>) -> Json<Value> {
    let mut state = state.lock().unwrap();
    state.step();
    Json(json!({"exports": state.exports}))
}

async fn imports(Shared(state): Shared<Handle>) -> Json<Value> {
    Json(json!({"imports": state.lock().unwrap().imports}))
}

async fn clusters(Shared(state): Shared<Handle>) -> Json<Value> {
    Json(json!({"clusters": state.lock().unwrap().clusters}))
}

async fn join(Shared(state): Shared<Handle>, Json(body): Json<Value>) -> Answer {
    let mut state = state.lock().unwrap();
    refused(&state)?;
    state.tokens.push(body["token"].as_str().unwrap().to_owned());
    Ok(Json(json!({})))
}

async fn leave(Shared(state): Shared<Handle>) -> Answer {
    let mut state = state.lock().unwrap();
    refused(&state)?;
    state.wishes.push(json!("leave"));
    Ok(Json(json!({"leaving": true})))
}

async fn rotations(Shared(state): Shared<Handle>) -> Json<Value> {
    let mut state = state.lock().unwrap();
    state.step();
    Json(json!({"rotations": state.status["rotations"]}))
}

async fn rotate(Shared(state): Shared<Handle>, Json(body): Json<Value>) -> Answer {
    let mut state = state.lock().unwrap();
    refused(&state)?;
    state.wishes.push(body);
    Ok(Json(json!({"rotations": state.status["rotations"]})))
}

async fn cancel_rotation(Shared(state): Shared<Handle>, Segments(key): Segments<String>) -> Answer {
    let mut state = state.lock().unwrap();
    refused(&state)?;
    state.wishes.push(json!(format!("cancel {key}")));
    Ok(Json(json!({"rotations": state.status["rotations"]})))
}

async fn export(Shared(state): Shared<Handle>, Json(body): Json<Value>) -> Answer {
    let mut state = state.lock().unwrap();
    refused(&state)?;
    state.exports.push(export_of(body["namespace"].as_str().unwrap(), body["name"].as_str().unwrap(), &[]));
    Ok(Json(json!({})))
}

async fn unexport(Shared(state): Shared<Handle>, Segments(service): Segments<(String, String)>) -> Answer {
    let state = state.lock().unwrap();
    refused(&state)?;
    let known = |it: &Value| it["namespace"] == service.0 && it["name"] == service.1;
    if state.exports.iter().any(known) {
        Ok(Json(json!({})))
    } else {
        Err((StatusCode::NOT_FOUND, Json(json!({"error": "there is no such export"}))))
    }
}
