//! The four kinds of load.

use std::{io, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    SERVER_NAME,
    hello::{Command, Opening, Target, opening},
};

/// The length of a small message, and of its answer.
const MESSAGE: usize = 64;
/// No answer takes longer, unless something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the backend, raw or TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection on which the command is given.
pub(super) async fn open(target: &Target, command: Command) -> io::Result<Box<dyn Stream>> {
    let mut stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    match &target.opening {
        Opening::Raw(hello) => {
            stream.write_all(&opening(hello, command)).await?;
            Ok(Box::new(stream))
        }
        Opening::Tls(connector) => {
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            let mut stream = connector.connect(name, stream).await?;
            stream.write_all(&command.encode()).await?;
            Ok(Box::new(stream))
        }
    }
}

/// An echo connection that has answered once.
pub(super) async fn open_echo(target: &Target) -> io::Result<Box<dyn Stream>> {
    let mut stream = open(target, Command::Echo).await?;
    exchange(&mut stream).await?;
    Ok(stream)
}

pub(super) async fn exchange(stream: &mut Box<dyn Stream>) -> io::Result<()> {
    let mut answer = [0; MESSAGE];
    stream.write_all(&[7; MESSAGE]).await?;
    timeout(PATIENCE, stream.read_exact(&mut answer)).await??;
    Ok(())
}

/// Receives so many bytes on each of the connections at once.
pub(super) async fn bulk(target: &Target, connections: usize, bytes_each: u64) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let target = target.clone();
        tasks.spawn(async move {
            let mut stream = open(&target, Command::Send(bytes_each)).await?;
            let mut buffer = vec![0; 1 << 20];
            let mut left = bytes_each;
            while left > 0 {
                match timeout(PATIENCE, stream.read(&mut buffer)).await?? {
                    0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    count => left -= count as u64,
                }
            }
            Ok(())
        });
    }
    all(tasks).await.map(drop)
}

/// New connections with one exchange each, so many at a time; how many there were.
pub(super) async fn connections(target: &Target, at_a_time: usize, duration: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let target = target.clone();
        tasks.spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                drop(open_echo(&target).await?);
                count += 1;
            }
            Ok(count)
        });
    }
    Ok(all(tasks).await?.into_iter().sum())
}

/// Exchanges one after the other on each of the connections; how many there were.
pub(super) async fn saturate(streams: &mut Vec<Box<dyn Stream>>, duration: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for mut stream in streams.drain(..) {
        tasks.spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                exchange(&mut stream).await?;
                count += 1;
            }
            Ok((stream, count))
        });
    }
    let mut total = 0;
    for (stream, count) in all(tasks).await? {
        streams.push(stream);
        total += count;
    }
    Ok(total)
}

/// Exchanges at a fixed rate over all the connections, each at its time whatever became of the one before; the latencies, sorted.
pub(super) async fn at_rate(
    streams: &mut Vec<Box<dyn Stream>>,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<Arc<[Duration]>> {
    let count = u32::try_from(streams.len())?;
    let period = Duration::from_secs(1) * count / rate;
    let start = Instant::now() + Duration::from_millis(10);
    let mut tasks = JoinSet::new();
    for (number, mut stream) in (0..count).zip(streams.drain(..)) {
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut due = start + period * number / count;
            while due < start + duration {
                sleep_until(due).await;
                // The timer is a millisecond coarse: what counts is the answer's time.
                let sent = Instant::now();
                exchange(&mut stream).await?;
                latencies.push(sent.elapsed());
                due += period;
            }
            Ok((stream, latencies))
        });
    }
    let mut latencies = Vec::new();
    for (stream, mut some) in all(tasks).await? {
        streams.push(stream);
        latencies.append(&mut some);
    }
    latencies.sort_unstable();
    Ok(latencies.into())
}

async fn all<T: 'static>(mut tasks: JoinSet<io::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut results = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        results.push(ended??);
    }
    Ok(results)
}
