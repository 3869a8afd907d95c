//! The control-plane's admin API: HTTP and JSON over a Unix socket.

pub(crate) mod wire;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use federation::ServiceId;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::failure::Failure;
use wire::{Cluster, Clusters, Export, Exports, Import, Imports, Rotation, Rotations, Status};

/// A control-plane that has not answered a question by now is stuck: its answers are made of what it has in memory.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// One that has not done something by now is stuck: joining, which calls the trust-bundle, takes longest.
const ACTION_DEADLINE: Duration = Duration::from_secs(60);
/// No answer is larger.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Of an error that is not JSON, this much is shown.
const MAX_SHOWN_CHARACTERS: usize = 300;

/// The admin API at a socket. Every call is a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    socket: PathBuf,
}

impl Admin {
    /// At this socket; nothing is connected yet.
    pub(crate) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The control-plane's state.
    pub(crate) async fn status(&self) -> Result<Status, Failure> {
        self.read("/v1/status").await
    }

    /// This cluster's exports.
    pub(crate) async fn exports(&self) -> Result<Vec<Export>, Failure> {
        self.read::<Exports>("/v1/exports").await.map(|it| it.exports)
    }

    /// The federation's services.
    pub(crate) async fn imports(&self) -> Result<Vec<Import>, Failure> {
        self.read::<Imports>("/v1/imports").await.map(|it| it.imports)
    }

    /// The federation's members.
    pub(crate) async fn clusters(&self) -> Result<Vec<Cluster>, Failure> {
        self.read::<Clusters>("/v1/clusters").await.map(|it| it.clusters)
    }

    /// Hands over a join token.
    pub(crate) async fn join(&self, token: &str) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Join<'a> {
            token: &'a str,
        }
        self.call("the token", Method::POST, "/v1/join", Some(&Join { token })).await.map(drop)
    }

    /// Ends the cluster's membership, in a while.
    pub(crate) async fn leave(&self) -> Result<(), Failure> {
        self.call("leave", Method::POST, "/v1/leave", None::<&()>).await.map(drop)
    }

    /// How far the rotation of each key is.
    pub(crate) async fn rotations(&self) -> Result<Vec<Rotation>, Failure> {
        self.read::<Rotations>("/v1/rotations").await.map(|it| it.rotations)
    }

    /// Begins a rotation, or hurries one.
    pub(crate) async fn rotate(&self, key: &str, emergency: bool) -> Result<Vec<Rotation>, Failure> {
        #[derive(Serialize)]
        struct Rotate<'a> {
            key: &'a str,
            emergency: bool,
        }
        let what = format!("rotate {key}");
        let body = self.call(&what, Method::POST, "/v1/rotations", Some(&Rotate { key, emergency })).await?;
        self.parsed::<Rotations>(&what, &body).map(|it| it.rotations)
    }

    /// Gives a rotation up.
    pub(crate) async fn cancel_rotation(&self, key: &str) -> Result<Vec<Rotation>, Failure> {
        let what = format!("rotate {key} --cancel");
        let body = self.call(&what, Method::DELETE, &format!("/v1/rotations/{key}"), None::<&()>).await?;
        self.parsed::<Rotations>(&what, &body).map(|it| it.rotations)
    }

    /// Exports a service.
    pub(crate) async fn export(&self, service: &ServiceId) -> Result<(), Failure> {
        self.call(&format!("export {service}"), Method::POST, "/v1/exports", Some(service)).await.map(drop)
    }

    /// Takes an export back.
    pub(crate) async fn unexport(&self, service: &ServiceId) -> Result<(), Failure> {
        let path = format!("/v1/exports/{service}");
        self.call(&format!("unexport {service}"), Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let what = format!("GET {path}");
        let body = self.call(&what, Method::GET, path, None::<&()>).await?;
        self.parsed(&what, &body)
    }

    fn parsed<T: DeserializeOwned>(&self, what: &str, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body)
            .map_err(|error| self.broken(what, &format!("the answer is not understood: {error}")))
    }

    /// One request. `what` says it in an error.
    async fn call(
        &self,
        what: &str,
        method: Method,
        path: &str,
        content: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Bytes, Failure> {
        let deadline = if method == Method::GET { ANSWER_DEADLINE } else { ACTION_DEADLINE };
        let request = self.request(what, method, path, content)?;
        let answered = timeout(deadline, self.exchange(what, request)).await;
        let (status, body) = answered
            .map_err(|_| self.broken(what, &format!("no answer within {}", crate::time::brief(deadline))))??;
        if status.is_success() {
            Ok(body)
        } else {
            Err(Failure::Refused { what: what.to_owned(), status, reason: reason(status, &body) })
        }
    }

    fn request(
        &self,
        what: &str,
        method: Method,
        path: &str,
        content: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let broken = |error: &dyn std::fmt::Display| self.broken(what, &error.to_string());
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "isthmus");
        let mut body = Vec::new();
        if let Some(content) = content {
            request = request.header(header::CONTENT_TYPE, "application/json");
            body = serde_json::to_vec(content).map_err(|error| broken(&error))?;
        }
        request.body(Full::from(body)).map_err(|error| broken(&error))
    }

    async fn exchange(&self, what: &str, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Failure::NoControlPlane { socket: self.socket.clone(), source })?;
        exchange(stream, request).await.map_err(|reason| self.broken(what, &reason))
    }

    fn broken(&self, what: &str, reason: &str) -> Failure {
        Failure::Conversation { socket: self.socket.clone(), what: what.to_owned(), reason: reason.to_owned() }
    }
}

/// One request over a connection of its own; the error is why there is no answer.
pub(crate) async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let conversation = async {
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    };
    let mut conversation = std::pin::pin!(conversation);
    tokio::select! {
        outcome = &mut conversation => outcome,
        // The connection's end is no answer: what it has read is still with the conversation.
        _ = connection => conversation.await,
    }
}

/// What an answer that is no success says: the text of `{"error": …}`, or else what there is.
pub(crate) fn reason(status: StatusCode, body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let candidates = [json.pointer("/error/message"), json.get("error"), json.get("message"), Some(&json)];
    let said = candidates.into_iter().flatten().find_map(serde_json::Value::as_str).map(str::to_owned);
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    if said.is_empty() { status.to_string() } else { said.chars().take(MAX_SHOWN_CHARACTERS).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_in_whatever_form_it_comes() {
        let table = [
            (r#"{"error":"no such service"}"#, "no such service"),
            (r#"{"error":{"message":"no such service"}}"#, "no such service"),
            (r#"{"message":"no such service"}"#, "no such service"),
            ("no such service\n", "no such service"),
            ("", "404 Not Found"),
        ];
        for (body, expected) in table {
            assert_eq!(reason(StatusCode::NOT_FOUND, body.as_bytes()), expected, "{body:?}");
        }
    }
}
