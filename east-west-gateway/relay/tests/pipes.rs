//! Which traffic goes through pipes. A test program of its own, for it counts the pipes of the process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, time::Duration};

use relay::{RelayEnd, RelayOptions, Relayed, relay};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(20);
const CONNECTIONS: usize = 10;
/// Fewer than a thread keeps.
const LIMIT: usize = 5;

/// Descriptors of pipes: two for each.
fn pipe_descriptors() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count()
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn relayed_pair(max_pipes: usize) -> (TcpStream, TcpStream, JoinHandle<Relayed>) {
    let (client, mut a) = pair().await;
    let (mut b, server) = pair().await;
    let options = RelayOptions { max_pipes, ..RelayOptions::default() };
    let relaying = tokio::spawn(async move { relay(&mut a, &mut b, &options).await });
    (client, server, relaying)
}

/// Writes until nothing between takes more.
async fn fill(stream: &mut TcpStream) -> usize {
    let mut written = 0;
    let bytes = vec![7; 1 << 16];
    while let Ok(count) = timeout(Duration::from_millis(100), stream.write(&bytes)).await {
        written += count.unwrap();
    }
    written
}

/// Reads so many bytes, all of which must be the ones written.
async fn drain(stream: &mut TcpStream, mut left: usize) {
    let mut bytes = vec![0; 1 << 18];
    while left > 0 {
        let count = timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap().unwrap();
        assert!(count > 0 && bytes[..count].iter().all(|byte| *byte == 7));
        left -= count;
    }
}

async fn until_pipe_descriptors(expected: usize) {
    let until = Instant::now() + PATIENCE;
    while pipe_descriptors() != expected {
        assert!(Instant::now() < until, "{} instead of {expected}", pipe_descriptors());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One test, for the count is the process's. On one thread, whose spare pipes are known.
#[tokio::test]
async fn pipes_are_held_by_blocked_bulk_alone_bounded_and_given_back() {
    let before = pipe_descriptors();
    let spare = before + 2 * LIMIT;

    // Messages, and idleness: none.
    let (mut client, mut server, _messages) = relayed_pair(64).await;
    for _ in 0..100 {
        client.write_all(&[7; 8192]).await.unwrap();
        drain(&mut server, 8192).await;
    }
    assert_eq!(pipe_descriptors(), before);

    // Bulk that nobody reads: one for each, to the limit; the others are not slower for it.
    let mut bulk = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, mut server, relaying) = relayed_pair(LIMIT).await;
        let written = fill(&mut server).await;
        bulk.push((client, server, relaying, written));
    }
    assert_eq!(pipe_descriptors(), before + 2 * LIMIT);
    assert_eq!(relay::pipes(), LIMIT);

    // Read after all, everything is there, and no idle connection keeps one.
    for (client, _, _, written) in &mut bulk {
        drain(client, *written).await;
    }
    until_pipe_descriptors(spare).await;

    // They serve the next ones.
    for (client, server, _, _) in &mut bulk {
        let bytes = vec![7; 3_000_000];
        let (written, ()) = tokio::join!(server.write_all(&bytes), drain(client, bytes.len()));
        written.unwrap();
    }
    until_pipe_descriptors(spare).await;

    // A connection that breaks with bytes in its pipe takes the pipe with it.
    let (client, mut server, relaying) = relayed_pair(64).await;
    fill(&mut server).await;
    relay::reset_on_close(&client).unwrap();
    drop(client);
    drop(server);
    assert!(matches!(timeout(PATIENCE, relaying).await.unwrap().unwrap().end, RelayEnd::Reset(_)));
    until_pipe_descriptors(spare - 2).await;

    // And none at all where none is allowed.
    let (mut client, mut server, _copied) = relayed_pair(0).await;
    let written = fill(&mut server).await;
    assert_eq!(pipe_descriptors(), spare - 2);
    drain(&mut client, written).await;
}
