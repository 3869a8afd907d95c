//! The loads: HTTP/1.1 by hand, so that the load costs little, and HTTP/2.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

/// No answer takes longer, unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// The head of an answer is shorter.
const HEAD: usize = 8 * 1024;
/// What bulk is read into.
const READ: usize = 256 * 1024;

/// Where a load goes and whom it asks for.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) host: String,
}

/// An HTTP/1.1 connection.
pub(super) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(target: &Target) -> io::Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(target.address)).await??;
        stream.set_nodelay(true)?;
        let request = format!("GET /small HTTP/1.1\r\nhost: {}\r\nuser-agent: bench\r\n\r\n", target.host).into_bytes();
        Ok(Self { stream, request, buffer: vec![0; HEAD] })
    }

    /// One small request and its answer.
    pub(super) async fn exchange(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.request).await?;
        timeout(PATIENCE, self.answer()).await?
    }

    /// Receives so many bytes by one request.
    async fn bulk(&mut self, host: &str, bytes: u64) -> io::Result<()> {
        let request = format!("GET /bulk/{bytes} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.resize(READ, 0);
        let (head, read, length) = self.head().await?;
        let mut left = length.saturating_sub((read - head) as u64);
        while left > 0 {
            match timeout(PATIENCE, self.stream.read(&mut self.buffer)).await?? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => left = left.saturating_sub(count as u64),
            }
        }
        Ok(())
    }

    async fn answer(&mut self) -> io::Result<()> {
        let (head, mut read, length) = self.head().await?;
        let whole = head + usize::try_from(length).map_err(io::Error::other)?;
        while read < whole {
            read += some(self.stream.read(&mut self.buffer[read..]).await?)?;
        }
        Ok(())
    }

    /// The length of the head, the bytes read so far, and the body's length.
    async fn head(&mut self) -> io::Result<(usize, usize, u64)> {
        let mut read = 0;
        loop {
            read += some(self.stream.read(&mut self.buffer[read..]).await?)?;
            let bytes = &self.buffer[..read];
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&bytes[..end]);
                if !text.starts_with("HTTP/1.1 200") {
                    return Err(io::Error::other(format!("answered {text}")));
                }
                let length = text.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
                });
                return Ok((end + 4, read, length.ok_or_else(|| io::Error::other("no content-length"))?));
            }
        }
    }
}

fn some(count: usize) -> io::Result<usize> {
    if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(count) }
}

pub(super) async fn open(target: &Target, count: usize) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(target).await?;
        connection.exchange().await.context("the first exchange")?;
        connections.push(connection);
    }
    Ok(connections)
}

/// Exchanges one after the other on each connection; how many there were.
pub(super) async fn saturate(connections: &mut Vec<Connection>, duration: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for mut connection in connections.drain(..) {
        tasks.spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                connection.exchange().await?;
                count += 1;
            }
            Ok((connection, count))
        });
    }
    let mut total = 0;
    for (connection, count) in all(tasks).await? {
        connections.push(connection);
        total += count;
    }
    Ok(total)
}

/// Exchanges at a fixed rate over all connections, each at its time; the latencies, sorted.
pub(super) async fn at_rate(
    connections: &mut Vec<Connection>,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let count = u32::try_from(connections.len())?;
    let period = Duration::from_secs(1) * count / rate;
    let start = Instant::now() + Duration::from_millis(10);
    let mut tasks = JoinSet::new();
    for (number, mut connection) in (0..count).zip(connections.drain(..)) {
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut due = start + period * number / count;
            while due < start + duration {
                sleep_until(due).await;
                // The timer is a millisecond coarse: what counts is the answer's time.
                let sent = Instant::now();
                connection.exchange().await?;
                latencies.push(sent.elapsed());
                due += period;
            }
            Ok((connection, latencies))
        });
    }
    let mut latencies = Vec::new();
    for (connection, mut some) in all(tasks).await? {
        connections.push(connection);
        latencies.append(&mut some);
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// A new connection for each request, so many at a time; how many there were.
pub(super) async fn churn(target: &Target, at_a_time: usize, duration: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let target = target.clone();
        tasks.spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                Connection::open(&target).await?.exchange().await?;
                count += 1;
            }
            Ok(count)
        });
    }
    Ok(all(tasks).await?.into_iter().sum())
}

/// So many bytes on each of some connections.
pub(super) async fn bulk(target: &Target, connections: usize, bytes_each: u64) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let target = target.clone();
        tasks.spawn(async move { Connection::open(&target).await?.bulk(&target.host, bytes_each).await });
    }
    all(tasks).await.map(drop)
}

/// HTTP/2: so many requests at a time on each of some connections; how many there were.
pub(super) async fn http2(
    target: &Target,
    connections: usize,
    streams: usize,
    duration: Duration,
) -> anyhow::Result<u64> {
    let until = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        for _ in 0..streams {
            let (mut sender, uri) = (sender.clone(), format!("http://{}/small", target.host));
            tasks.spawn(async move {
                let mut count = 0;
                while Instant::now() < until {
                    let request = Request::get(&uri).body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
                    let answering = timeout(PATIENCE, sender.send_request(request)).await?;
                    let answer = answering.map_err(io::Error::other)?;
                    if !answer.status().is_success() {
                        return Err(io::Error::other(format!("answered {}", answer.status())));
                    }
                    answer.into_body().collect().await.map_err(io::Error::other)?;
                    count += 1;
                }
                Ok(count)
            });
        }
    }
    Ok(all(tasks).await?.into_iter().sum())
}

async fn all<T: 'static>(mut tasks: JoinSet<io::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut results = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        results.push(ended??);
    }
    Ok(results)
}
