//! One connection: its hello, its endpoint, its bytes.

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
    routes::{Candidates, Found, Routes},
};

pub(crate) use record::Record;

/// What every connection of a gateway shares.
#[derive(Debug)]
pub(crate) struct DataPath {
    pub(crate) admission: Arc<Admission>,
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
        let (hello, bytes) = match read_client_hello(client, &self.hello_limits).await {
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
        match self.connect(&hello, &bytes, record).await {
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
