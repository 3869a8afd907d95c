//! The sockets: UDP packets and TCP connections, each answered from the zone of that moment.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    metrics::{Metrics, Transport},
    respond::respond,
    zone::Zone,
};

/// Largest query read, in bytes. A question with EDNS needs a few hundred.
const MAX_QUERY: usize = 4096;

/// Queries answered in a row before other tasks get a turn.
const BATCH: usize = 64;

/// Time a TCP client has to send a query, and to take the answer.
const TCP_IDLE: Duration = Duration::from_secs(5);

/// TCP connections to one listener at a time.
const MAX_CONNECTIONS: usize = 512;

/// TCP connections to one listener from one source at a time.
const MAX_CONNECTIONS_PER_SOURCE: usize = 64;

/// Pause after a socket error, so that a lasting one (out of descriptors) does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Answers on all sockets until `shutdown` resolves. Answers follow the zone as its owner replaces it.
///
/// # Errors
/// When a socket's task ends unexpectedly. Errors of single packets and connections are not errors of the server.
pub async fn serve(
    zone: Arc<ArcSwap<Zone>>,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    metrics: Metrics,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    for socket in udp {
        tasks.spawn(serve_udp(socket, zone.clone(), metrics.clone()));
    }
    for listener in tcp {
        tasks.spawn(serve_tcp(listener, zone.clone(), metrics.clone()));
    }
    tokio::pin!(shutdown);
    let result = tokio::select! {
        () = &mut shutdown => Ok(()),
        Some(Err(error)) = tasks.join_next() => Err(io::Error::other(error)),
    };
    tasks.shutdown().await;
    result
}

async fn serve_udp(socket: UdpSocket, zone: Arc<ArcSwap<Zone>>, metrics: Metrics) {
    let mut query = vec![0; MAX_QUERY];
    let mut response = Vec::with_capacity(MAX_QUERY);
    let mut answered = 0;
    loop {
        let (length, source) = match socket.recv_from(&mut query).await {
            Ok(received) => received,
            Err(error) => {
                // An earlier response that could not be delivered shows up here as well.
                tracing::debug!(%error, "could not receive a DNS query");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let kind = respond(&zone.load(), &query[..length], source, Transport::Udp, &mut response);
        metrics.count(Transport::Udp, kind);
        if kind.is_some()
            && let Err(error) = socket.send_to(&response, source).await
        {
            tracing::debug!(%error, src.addr = %source, "could not send a DNS response");
        }
        answered += 1;
        if answered % BATCH == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<ArcSwap<Zone>>, metrics: Metrics) {
    let mut connections: JoinSet<()> = JoinSet::new();
    let mut sources: HashMap<tokio::task::Id, IpAddr> = HashMap::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next_with_id() => {
                sources.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
                continue;
            }
        };
        match accepted {
            Ok((stream, source)) => {
                let same = sources.values().filter(|&&other| other == source.ip()).count();
                if connections.len() >= MAX_CONNECTIONS || same >= MAX_CONNECTIONS_PER_SOURCE {
                    metrics.refused_connection();
                    continue;
                }
                let task = connections.spawn(converse(stream, source, zone.clone(), metrics.clone()));
                sources.insert(task.id(), source.ip());
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a DNS connection");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Answers the queries of one connection in order, until it ends or falls silent.
async fn converse(mut stream: TcpStream, source: SocketAddr, zone: Arc<ArcSwap<Zone>>, metrics: Metrics) {
    let mut query = vec![0; MAX_QUERY];
    let mut response = Vec::with_capacity(MAX_QUERY);
    loop {
        let read = async {
            let length = usize::from(stream.read_u16().await?);
            let query = query.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
            stream.read_exact(query).await?;
            io::Result::Ok(length)
        };
        let Ok(Ok(length)) = timeout(TCP_IDLE, read).await else { return };
        let kind = respond(&zone.load(), &query[..length], source, Transport::Tcp, &mut response);
        metrics.count(Transport::Tcp, kind);
        let Some(prefix) = kind.and_then(|_| u16::try_from(response.len()).ok()) else { return };
        response.splice(..0, prefix.to_be_bytes());
        let Ok(Ok(())) = timeout(TCP_IDLE, stream.write_all(&response)).await else { return };
    }
}
