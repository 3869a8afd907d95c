//! One connection: its hello, its endpoint, its bytes.

mod dial;
mod record;

use std::{sync::Arc, time::Instant};

use federation::Locality;
use relay::{ClientHello, HelloLimits, RelayOptions, SocketOptions, read_client_hello, relay_observed};
use tokio::net::TcpStream;
use tracing::debug;

use crate::{
    admission::{Pending, Shed},
    close_reason::{CloseReason, Refusal},
    config::ConnectConfig,
    metrics::Metrics,
    routes::{Candidates, Found, Routes},
};

pub(crate) use record::Record;

/// What every connection of a gateway shares.
#[derive(Debug)]
pub(crate) struct DataPath {
    pub(crate) routes: Arc<Routes>,
    pub(crate) locality: Locality,
    pub(crate) hello_limits: HelloLimits,
    pub(crate) connect: ConnectConfig,
    pub(crate) sockets: SocketOptions,
    pub(crate) relaying: RelayOptions,
    pub(crate) max_connections_per_service: usize,
    pub(crate) metrics: Arc<Metrics>,
}

impl DataPath {
    /// Serves a connection to its end; the record tells of it when it is dropped.
    pub(crate) async fn serve(&self, mut client: TcpStream, pending: Pending, mut record: Record) {
        let (hello, bytes) = match read_client_hello(&mut client, &self.hello_limits).await {
            Ok(read) => read,
            Err(error) => {
                debug!(src.addr = %record.source, error = &error as &dyn std::error::Error, "no hello");
                let reason = CloseReason::of_hello(&error);
                // The source keeps its place in the count until its connection is gone.
                return record.refuse(&mut client, reason, error.alert()).await;
            }
        };
        drop(pending);
        self.metrics.hello_time.observe(record.started.elapsed());
        let mut endpoint = match self.connect(&hello, &bytes, &mut record).await {
            Ok(endpoint) => endpoint,
            Err(refusal) => {
                return record.refuse(&mut client, CloseReason::Refused(refusal), Some(refusal.alert())).await;
            }
        };
        // Some hundred bytes up to the limit, which an idle connection need not keep.
        drop((hello, bytes));
        relay_observed(&mut client, &mut endpoint, &self.relaying, &mut record).await;
        record.reason = Some(CloseReason::Relayed(record.relayed.end));
    }

    /// An endpoint of the service that the hello names, which has got the hello.
    async fn connect(&self, hello: &ClientHello, bytes: &[u8], record: &mut Record) -> Result<TcpStream, Refusal> {
        let name = hello.server_name.as_deref().ok_or(Refusal::NoServerName)?;
        record.server_name = Some(name.to_owned());
        let Found { route, slot } = self.routes.find(name)?;
        record.seat = Some(route.seat(self.max_connections_per_service).ok_or_else(|| {
            self.metrics.shed.add(Shed::Service.label(), 1);
            Refusal::ServiceFull
        })?);
        let candidates = Candidates::new(&route, &self.locality, slot);
        let began = Instant::now();
        let (stream, engaged) = self.dial(candidates, bytes).await?;
        self.metrics.connect_time.observe(began.elapsed());
        record.passed_on(bytes.len() as u64);
        record.endpoint = Some(engaged);
        Ok(stream)
    }
}
