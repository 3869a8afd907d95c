//! What is told of a connection when it ends: one access event, and the metrics.

use std::{net::SocketAddr, time::Instant};

use mesh_runtime::DrainWatcher;
use relay::{Relayed, refuse};
use tokio::net::TcpStream;
use tracing::{Level, event};

use crate::{
    admission::Admitted,
    close_reason::CloseReason,
    metrics::{Direction, Metrics, Reason},
    routes::Engaged,
};

/// A connection from its acceptance to its end. Dropping it, wherever and for whatever reason, writes the access event
/// and counts, once.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) source: SocketAddr,
    pub(crate) started: Instant,
    pub(crate) server_name: Option<String>,
    /// Counted for the endpoint for as long as the record lives.
    pub(crate) endpoint: Option<Engaged>,
    /// The length of what was read before the relay began, and passed on.
    pub(crate) hello_bytes: u64,
    pub(crate) relayed: Relayed,
    pub(crate) reason: Option<CloseReason>,
    metrics: Metrics,
    drain: DrainWatcher,
    _admitted: Admitted,
}

impl Record {
    pub(crate) fn new(source: SocketAddr, metrics: Metrics, drain: DrainWatcher, admitted: Admitted) -> Self {
        metrics.open.inc();
        Self {
            source,
            started: Instant::now(),
            server_name: None,
            endpoint: None,
            hello_bytes: 0,
            relayed: Relayed::default(),
            reason: None,
            metrics,
            drain,
            _admitted: admitted,
        }
    }

    /// Ends a connection that goes nowhere: with an alert, if the client can read one.
    pub(crate) async fn refuse(mut self, client: &mut TcpStream, reason: CloseReason, alert: Option<[u8; 7]>) {
        self.reason = Some(reason);
        if let Some(alert) = alert {
            // A client that is gone has no use for it.
            let _ = refuse(client, &alert).await;
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let reason =
            self.reason.unwrap_or(if self.drain.draining() { CloseReason::Drained } else { CloseReason::Aborted });
        let Relayed { a_to_b, b_to_a: received, first_byte, .. } = self.relayed;
        let sent = a_to_b + self.hello_bytes;
        self.metrics.open.dec();
        self.metrics.closed.get_or_create(&Reason { reason: reason.label() }).inc();
        self.metrics.bytes.get_or_create(&Direction { direction: "to_endpoint" }).inc_by(sent);
        self.metrics.bytes.get_or_create(&Direction { direction: "to_client" }).inc_by(received);
        if let Some(first_byte) = first_byte {
            self.metrics.first_byte_time.observe(first_byte.as_secs_f64());
        }
        // Health checks of load balancers connect and close all the time.
        if reason == CloseReason::Probe {
            return;
        }
        let endpoint = self.endpoint.as_ref().map(Engaged::endpoint);
        event!(
            target: "access",
            Level::INFO,
            src.addr = %self.source,
            server_name = self.server_name.as_deref().unwrap_or_default(),
            endpoint = endpoint.map_or("", |endpoint| endpoint.id.as_str()),
            dst.addr = endpoint.map(|endpoint| tracing::field::display(endpoint.address)),
            dst.zone = endpoint.map_or("", |endpoint| endpoint.locality.zone.as_str()),
            bytes_to_endpoint = sent,
            bytes_to_client = received,
            duration_ms = milliseconds(self.started.elapsed()),
            first_byte_ms = first_byte.map(milliseconds),
            reason = reason.label(),
            "connection"
        );
    }
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
