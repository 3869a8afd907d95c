//! Upgrades of HTTP/1.1 connections, WebSocket's for one (RFC 9110, section 7.8; RFC 6455).
//!
//! ```text
//!  application ── GET, upgrade: x ──► sidecar ── CONNECT, :protocol x ──► sidecar ── GET, upgrade: x ──► application
//!              ◄─ 101 ───────────────         ◄─ 200 ────────────────             ◄─ 101 ──────────────
//!              ◄═ bytes ═══════════════════════ one HTTP/2 stream ════════════════════ bytes ═════════►
//! ```
//!
//! On the way it is an extended CONNECT (RFC 8441). Every other field goes with it as it is, so the two ends agree on what
//! they agree on. An application that refuses answers as to any request.

use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_runtime::DrainWatcher;
use relay::{RelayOptions, Relayed};
use tracing::debug;

use crate::tasks::Tasks;

/// The longest protocol that is passed on.
const MAX_PROTOCOL: usize = 64;

/// An upgrade that the local application asks for.
pub(crate) struct Asked {
    protocol: HeaderValue,
    ours: OnUpgrade,
}

impl Asked {
    /// Finds out whether a request asks for one, before its hop-by-hop fields are gone.
    ///
    /// `h2c` is none: RFC 9113 has taken it back, and the request is answered as it is.
    pub(crate) fn of(request: &mut Request<Incoming>) -> Option<Self> {
        if request.version() != Version::HTTP_11 || request.method() != Method::GET {
            return None;
        }
        let protocol = asked_protocol(request.headers())?.clone();
        Some(Self { protocol, ours: hyper::upgrade::on(request) })
    }

    /// What the request becomes on its way.
    pub(crate) fn carry(&self, method: &mut Method, extensions: &mut http::Extensions) {
        if let Ok(protocol) = self.protocol.to_str() {
            *method = Method::CONNECT;
            extensions.insert(Protocol::from(protocol));
        }
    }

    /// The answer to an application whose upgrade the other side has agreed to; from then on bytes are copied, until both
    /// have ended. `held` lives as long.
    pub(crate) fn agreed<H: Send + 'static>(
        self,
        response: &mut Response<Incoming>,
        tasks: &Tasks,
        drain: &DrainWatcher,
        held: impl FnOnce(Relayed) -> H + Send + 'static,
    ) {
        let theirs = hyper::upgrade::on(&mut *response);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.version_mut() = Version::HTTP_11;
        switching(response.headers_mut(), self.protocol);
        join(self.ours, theirs, tasks, drain, held);
    }
}

/// The protocol of an `upgrade` field that `connection` names.
fn asked_protocol(headers: &HeaderMap) -> Option<&HeaderValue> {
    let named = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| named)?;
    let text = protocol.to_str().ok()?;
    let token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte));
    (token && text.len() <= MAX_PROTOCOL && !text.eq_ignore_ascii_case("h2c")).then_some(protocol)
}

/// The fields that an upgrade is asked for and agreed to with.
pub(crate) fn switching(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Copies bytes between two upgraded connections in a task of its own.
pub(crate) fn join<H: Send + 'static>(
    one: OnUpgrade,
    other: OnUpgrade,
    tasks: &Tasks,
    drain: &DrainWatcher,
    held: impl FnOnce(Relayed) -> H + Send + 'static,
) {
    let hold = drain.hold();
    tasks.spawn(Box::pin(async move {
        let _hold = hold;
        let mut relayed = Relayed::default();
        match tokio::try_join!(one, other) {
            Ok((one, other)) => {
                let (mut one, mut other) = (TokioIo::new(one), TokioIo::new(other));
                relay::relay_streams(&mut one, &mut other, &RelayOptions::default(), &mut relayed).await;
            }
            Err(error) => debug!(%error, "upgrade"),
        }
        held(relayed);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_upgrade_that_the_connection_names_is_one() {
        let asked = |connection: &'static str, upgrade: &'static str| {
            let headers = HeaderMap::from_iter([
                (CONNECTION, HeaderValue::from_static(connection)),
                (UPGRADE, HeaderValue::from_static(upgrade)),
            ]);
            asked_protocol(&headers).is_some()
        };
        assert!(asked("Upgrade", "websocket"));
        assert!(asked("keep-alive, upgrade", "WebSocket"));
        assert!(!asked("keep-alive", "websocket"));
        assert!(!asked("upgrade", "h2c"));
        assert!(!asked("upgrade", "a b"));
        assert!(!asked("upgrade", ""));
    }
}
