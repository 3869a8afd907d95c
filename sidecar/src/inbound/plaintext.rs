//! Plaintext to ports that a policy makes strict: refused, with a reason where the protocol has words for one.
//!
//! The kernel hands such connections over (see [`crate::capture`]); those of a kubelet's probes it leaves alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::inbound::Inbound;
use crate::inbound::sources::Sources;
use crate::outbound::detect::{self, Spoken};
use crate::outbound::{ACCEPT_PAUSE, captured, original};

/// Connections that are refused or passed on at a time; further ones are reset unheard.
const MAX_CONNECTIONS: usize = 1024;

/// Time for a refused client to read why, and to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is read of a refused request at a time: unread bytes would turn the answer into a reset.
const REQUEST_PART: usize = 4096;

impl Inbound {
    /// Takes captured plaintext connections until dropped.
    pub(crate) async fn serve_plaintext(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let sources = Sources::default();
        loop {
            let (stream, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "strict accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (Some(place), Ok(permit)) = (sources.enter(source.ip()), Arc::clone(&connections).try_acquire_owned())
            else {
                self.count("none", "shed");
                reset(&stream);
                continue;
            };
            let inbound = Arc::clone(&self);
            self.tasks.spawn(Box::pin(async move {
                inbound.plaintext(stream, source).await;
                drop((place, permit));
            }));
        }
    }

    async fn plaintext(&self, stream: TcpStream, source: SocketAddr) {
        let Some(original) = original::destination(&stream) else {
            // Made to this listener itself: nobody is asked for.
            reset(&stream);
            return;
        };
        let policy = self.serving.load().workload.policies.strict_at(original.port());
        let Some(policy) = policy else {
            // The kernel has not heard yet that the policy is gone.
            captured::pass_on(stream, original).await;
            return;
        };
        self.count("none", "plaintext");
        if let Some(unsaid) = self.denials.say(Instant::now()) {
            info!(src.addr = %source, port = original.port(), %policy, unsaid, "plaintext denied by a strict policy");
        }
        // Its own end: a client that says nothing is not waited for longer than this.
        match tokio::time::timeout(detect::WINDOW, detect::first_bytes(&stream)).await {
            Ok(Spoken::Http) => {
                let _ = tokio::time::timeout(FAREWELL, answer(stream, &policy)).await;
            }
            _ => reset(&stream),
        }
    }
}

/// 403 in plain HTTP/1.1, and an end that lets it be read.
async fn answer(mut stream: TcpStream, policy: &str) -> std::io::Result<()> {
    let body = format!("isthmus: plaintext is denied by {policy}\n");
    let head = "HTTP/1.1 403 Forbidden\r\nisthmus-error: plaintext\r\nconnection: close\r\n\
                content-type: text/plain; charset=utf-8\r\ncontent-length: ";
    let mut part = [0; REQUEST_PART];
    if stream.read(&mut part).await? == 0 {
        return Ok(());
    }
    stream.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    stream.shutdown().await?;
    while stream.read(&mut part).await? > 0 {}
    Ok(())
}

fn reset(stream: &TcpStream) {
    // A socket that takes no option any more is closed already.
    drop(relay::reset_on_close(stream));
}
