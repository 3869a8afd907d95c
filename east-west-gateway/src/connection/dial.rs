//! Reaching an endpoint, or another one, within the budget.

use std::{io, sync::Arc, time::Duration};

use relay::configure;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use tracing::debug;

use super::DataPath;
use crate::{
    close_reason::Refusal,
    routes::{Candidates, Endpoint, Engaged},
};

/// The generator may not live across a wait, since it belongs to the thread.
fn next<'a>(candidates: &mut Candidates<'a>) -> Option<&'a Arc<Endpoint>> {
    candidates.next(std::time::Instant::now(), &mut rand::rng())
}

impl DataPath {
    /// Tries candidates in turn until one is connected and has got the hello.
    pub(super) async fn dial(
        &self,
        mut candidates: Candidates<'_>,
        hello: &[u8],
    ) -> Result<(TcpStream, Engaged), Refusal> {
        if candidates.is_empty() {
            return Err(Refusal::NoReadyEndpoint);
        }
        let deadline = Instant::now() + self.connect.budget;
        while let Some(endpoint) = next(&mut candidates) {
            // Counted while it is being dialled: a burst spreads.
            let engaged = endpoint.engage();
            let left = deadline.saturating_duration_since(Instant::now());
            // The last one may take all that is left.
            let patience = if candidates.is_empty() { left } else { left.min(self.connect.attempt) };
            match self.attempt(endpoint, hello, patience).await {
                Ok(stream) => {
                    endpoint.reached();
                    return Ok((stream, engaged));
                }
                Err(error) => self.note_failure(endpoint, &error),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(Refusal::Unreachable)
    }

    async fn attempt(&self, endpoint: &Endpoint, hello: &[u8], patience: Duration) -> io::Result<TcpStream> {
        let attempt = async {
            let mut stream = TcpStream::connect(endpoint.address).await?;
            configure(&stream, &self.sockets)?;
            stream.write_all(hello).await?;
            Ok(stream)
        };
        timeout(patience, attempt).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn note_failure(&self, endpoint: &Endpoint, error: &io::Error) {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => "refused",
            io::ErrorKind::TimedOut => "timed_out",
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset",
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
            // Such as no descriptor or no port left: nothing that the endpoint has done.
            _ => "local",
        };
        if kind != "local" {
            endpoint.failed(std::time::Instant::now());
        }
        self.metrics.connect_failures.add(kind, 1);
        debug!(endpoint = endpoint.id, dst.addr = %endpoint.address, %error, "could not reach an endpoint");
    }
}
