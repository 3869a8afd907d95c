//! Calls of the local application: captured by the kernel, or made to this explicit proxy for the clusterset.
//!
//! ```text
//!              ┌─ captured ─────────────────────────────┐
//!              ├─ 0x05 ─► SOCKS5 ──┐                    ├─ opaque port ─► one session, bytes as they are
//!  application ┤                   ├─ CONNECT, tunnel ──┤
//!              └─ else ─► HTTP ────┘                    └─ HTTP port ──┐
//!                          └─ absolute URI ────────────────────────────┴─► forward: attempts, retries
//! ```

pub(crate) mod captured;
mod destination;
pub(crate) mod detect;
mod forward;
mod open;
pub(crate) mod original;
mod proxy;
mod refusal;
pub(crate) mod replay;
mod response;
mod serving;
mod socks;
mod tunnel;
pub(crate) mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::DrainWatcher;
use mesh_tls::Identity;
use relay::SocketOptions;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

pub(crate) use destination::{Destination, Name, port_of};
pub(crate) use refusal::Refusal;

use crate::metrics::{Answered, Direction, Metrics};
use crate::routing::Router;
use crate::session::dial::Dialer;
use crate::tasks::Tasks;

/// SOCKS version 5 opens with its version (RFC 1928, section 3); no HTTP request does.
const SOCKS5: u8 = 0x05;

/// Rest after an accept error such as too many open files, which would otherwise spin.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What calls of the application need.
pub(crate) struct Outbound {
    pub(crate) dialer: Dialer,
    pub(crate) router: Router,
    pub(crate) identity: Identity,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    pub(crate) drain: DrainWatcher,
    /// Connections of the application at a time.
    pub(crate) connections: Arc<Semaphore>,
    /// Requests of the application at a time.
    pub(crate) requests: Arc<Semaphore>,
}

impl Outbound {
    /// Accepts connections of the application until dropped. It goes on while draining: the application may need others to
    /// finish what it does.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "outbound accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let outbound = Arc::clone(&self);
            self.tasks.spawn(async move {
                let open = outbound.metrics.open_connections.get_or_create_owned(&Direction { direction: "outbound" });
                open.inc();
                if let Err(error) = outbound.connection(stream).await {
                    debug!(%error, "connection of the application");
                }
                open.dec();
                drop(permit);
            });
        }
    }

    /// Counts a request that had no route.
    fn count_refusal(&self, refusal: &Refusal) {
        let labels = Answered { service: "none".to_owned(), cluster: "none".to_owned(), result: refusal.code() };
        self.metrics.outbound_requests.get_or_create(&labels).inc();
    }

    async fn connection(self: &Arc<Self>, stream: TcpStream) -> std::io::Result<()> {
        relay::configure(&stream, &SocketOptions::default())?;
        if let Some(original) = original::destination(&stream) {
            Box::pin(captured::serve(self, stream, original)).await;
            return Ok(());
        }
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(());
        }
        if first[0] == SOCKS5 {
            Box::pin(socks::serve(self, stream)).await
        } else {
            Box::pin(proxy::serve(self, stream)).await;
            Ok(())
        }
    }
}
