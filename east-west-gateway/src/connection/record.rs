//! What is told of a connection when it ends: one access event, and the metrics.

use std::{mem, net::SocketAddr, sync::Arc, time::Instant};

use mesh_runtime::DrainWatcher;
use relay::{Relayed, refuse};
use tokio::net::TcpStream;
use tracing::{Level, event};

use super::Side;
use crate::{
    admission::Admitted,
    close_reason::CloseReason,
    metrics::{Metrics, TO_CLIENT, TO_ENDPOINT},
    routes::{Engaged, Seat},
};

/// What a connection may have moved before the counters learn of it: they are shared by all threads, and a message must not cost
/// a turn at them.
const UNCOUNTED_BYTES: u64 = 64 * 1024;

/// A connection from its acceptance to its end. Dropping it, wherever and for whatever reason, writes the access event
/// and counts, once.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) side: Side,
    pub(crate) source: SocketAddr,
    pub(crate) started: Instant,
    pub(crate) server_name: Option<String>,
    /// Counted for the endpoint for as long as the record lives.
    pub(crate) endpoint: Option<Engaged>,
    /// Likewise for the service.
    pub(crate) seat: Option<Seat>,
    /// The length of what was read before the relay began, and passed on.
    pub(crate) hello_bytes: u64,
    pub(crate) relayed: Relayed,
    pub(crate) reason: Option<CloseReason>,
    /// Bytes to the endpoint and to the client that the counters do not know of.
    uncounted: (u64, u64),
    metrics: Arc<Metrics>,
    drain: DrainWatcher,
    _admitted: Admitted,
}

impl Record {
    pub(crate) fn new(
        side: Side,
        source: SocketAddr,
        metrics: Arc<Metrics>,
        drain: DrainWatcher,
        admitted: Admitted,
    ) -> Self {
        metrics.open.inc();
        Self {
            side,
            source,
            started: Instant::now(),
            server_name: None,
            endpoint: None,
            seat: None,
            hello_bytes: 0,
            relayed: Relayed::default(),
            reason: None,
            uncounted: (0, 0),
            metrics,
            drain,
            _admitted: admitted,
        }
    }

    /// Ends a connection that goes nowhere: with an alert, if the client can read one.
    pub(crate) async fn refuse(&mut self, client: &mut TcpStream, reason: CloseReason, alert: Option<[u8; 7]>) {
        self.reason = Some(reason);
        if let Some(alert) = alert {
            // A client that is gone has no use for it.
            let _ = refuse(client, &alert).await;
        }
    }
}

impl Record {
    /// The endpoint has got what was read before the relay.
    pub(crate) fn passed_on(&mut self, hello_bytes: u64) {
        self.hello_bytes = hello_bytes;
        self.uncounted.0 += hello_bytes;
    }

    /// The relay has said how it ended.
    pub(crate) const fn relay_ended(&mut self) {
        self.reason = Some(CloseReason::Relayed(self.relayed.end));
    }

    fn count_bytes(&mut self) {
        let (to_endpoint, to_client) = mem::take(&mut self.uncounted);
        self.metrics.bytes.add(TO_ENDPOINT, to_endpoint);
        self.metrics.bytes.add(TO_CLIENT, to_client);
    }
}

impl relay::Record for Record {
    fn relayed(&mut self) -> &mut Relayed {
        &mut self.relayed
    }

    fn progressed(&mut self, to_endpoint: u64, to_client: u64) {
        self.uncounted.0 += to_endpoint;
        self.uncounted.1 += to_client;
        if self.uncounted.0 + self.uncounted.1 >= UNCOUNTED_BYTES {
            self.count_bytes();
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
        self.metrics.closed.add(reason.label(), 1);
        self.count_bytes();
        if let Some(first_byte) = first_byte {
            self.metrics.first_byte_time.observe(first_byte);
        }
        // Health checks of load balancers connect and close all the time.
        if reason == CloseReason::Probe {
            return;
        }
        let endpoint = self.endpoint.as_ref().map(Engaged::endpoint);
        event!(
            target: "access",
            Level::INFO,
            side = self.side.label(),
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
