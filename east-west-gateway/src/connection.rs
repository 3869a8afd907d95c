//! One connection: its hello, its endpoint, its bytes.

mod arriving;
mod dial;
mod record;

use std::{sync::Arc, time::Instant};

use federation::Locality;
use relay::{
    ClientHello, HelloLimits, ProxyHeader, RelayOptions, SocketOptions, read_client_hello, read_proxy_header,
    relay_observed, reset_on_close,
};
use tokio::{net::TcpStream, time::timeout};
use tracing::debug;

use crate::{
    admission::{Admission, Pending, Shed},
    close_reason::{CloseReason, Refusal},
    config::ConnectConfig,
    metrics::Metrics,
    remotes::Remotes,
    routes::{Candidates, Endpoint, Engaged, Found, Routes, Seat},
};

use arriving::Arriving;
pub(crate) use record::Record;

/// From which side a connection comes, and so where it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// From other clusters, to endpoints of this one; and nowhere else, so that nobody outside has a relay in it.
    Outside,
    /// From sidecars of this cluster, to gateways of others; and nowhere else, so that no circle can form.
    Inside,
}

impl Side {
    /// A fixed word for logs.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Inside => "inside",
        }
    }
}

/// What every connection of a gateway shares.
#[derive(Debug)]
pub(crate) struct DataPath {
    pub(crate) admission: Arc<Admission>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) remotes: Arc<Remotes>,
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
    ///
    /// `pending` counts for its source until the hello is there; a load balancer has first to say which source that is.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps its arguments twice, and an idle connection is this future"
    )]
    pub(crate) fn serve(
        self: Arc<Self>,
        mut client: TcpStream,
        pending: Option<Pending>,
        mut record: Record,
    ) -> impl Future<Output = ()> {
        // What establishing takes is on the heap, and gone before the relay begins.
        async move {
            let establishing = Box::pin(self.establish(&mut client, pending, &mut record));
            let Some(mut endpoint) = establishing.await else { return };
            relay_observed(&mut client, &mut endpoint, &self.relaying, &mut record).await;
            record.relay_ended();
        }
    }

    /// Reads what comes before the relay, up to an endpoint that has got the hello; whom that leads nowhere is told so.
    async fn establish(
        &self,
        client: &mut TcpStream,
        pending: Option<Pending>,
        record: &mut Record,
    ) -> Option<TcpStream> {
        let pending = match pending {
            Some(pending) => pending,
            None => match self.identify(client, record).await {
                Ok(pending) => pending,
                Err(reason) => {
                    record.reason = Some(reason);
                    return None;
                }
            },
        };
        let (hello, bytes) = match read_client_hello(&mut Arriving::new(client), &self.hello_limits).await {
            Ok(read) => read,
            Err(error) => {
                debug!(src.addr = %record.source, error = &error as &dyn std::error::Error, "no hello");
                // The source keeps its place in the count until its connection is gone.
                record.refuse(client, CloseReason::of_hello(&error), error.alert()).await;
                return None;
            }
        };
        drop(pending);
        self.metrics.hello_time.observe(record.started.elapsed());
        match self.connect(hello, &bytes, record).await {
            Ok(endpoint) => Some(endpoint),
            Err(refusal) => {
                record.refuse(client, CloseReason::Refused(refusal), Some(refusal.alert())).await;
                None
            }
        }
    }

    /// Reads what a load balancer says of the client, who counts from now on as the source.
    async fn identify(&self, client: &mut TcpStream, record: &mut Record) -> Result<Pending, CloseReason> {
        let header = match timeout(self.hello_limits.deadline, read_proxy_header(client)).await {
            Ok(Ok(header)) => header,
            Ok(Err(error)) => {
                debug!(src.addr = %record.source, error = &error as &dyn std::error::Error, "no PROXY protocol header");
                return Err(CloseReason::ProxyHeader);
            }
            Err(_) => return Err(CloseReason::HelloTooSlow),
        };
        if let ProxyHeader::Client(source) = header {
            record.source = source;
        }
        self.admission.await_hello(record.source.ip()).map_err(|shed| {
            self.metrics.shed.add(shed.label(), 1);
            // Without the option it is closed in order, which tells it as well.
            let _ = reset_on_close(client);
            CloseReason::Shed
        })
    }

    /// An endpoint of the service, or a gateway of the cluster, that the hello names, which has got the hello.
    async fn connect(&self, hello: ClientHello, bytes: &[u8], record: &mut Record) -> Result<TcpStream, Refusal> {
        record.server_name = hello.server_name;
        let name = record.server_name.as_deref().ok_or(Refusal::NoServerName)?;
        match record.side {
            Side::Outside => {
                let Found { route, slot } = self.routes.find(name)?;
                self.reach(route.seat(self.max_connections_per_service), &route.endpoints, slot, bytes, record).await
            }
            // The slot is for the other cluster's gateway.
            Side::Inside => {
                let remote = self.remotes.find(name)?;
                self.reach(remote.seat(self.max_connections_per_service), &remote.gateways, None, bytes, record).await
            }
        }
    }

    /// One of the endpoints, which has got the hello.
    async fn reach(
        &self,
        seat: Option<Seat>,
        endpoints: &[Arc<Endpoint>],
        slot: Option<u16>,
        hello: &[u8],
        record: &mut Record,
    ) -> Result<TcpStream, Refusal> {
        record.seat = Some(seat.ok_or_else(|| {
            self.metrics.shed.add(Shed::Service.label(), 1);
            Refusal::ServiceFull
        })?);
        let began = Instant::now();
        let (stream, engaged): (TcpStream, Engaged) =
            self.dial(Candidates::new(endpoints, &self.locality, slot), hello).await?;
        self.metrics.connect_time.observe(began.elapsed());
        record.passed_on(hello.len() as u64);
        record.endpoint = Some(engaged);
        Ok(stream)
    }
}
