//! The relay between real sockets, and between streams of other kinds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{io, sync::Arc, sync::Mutex, time::Duration};

use relay::{
    RelayEnd, RelayOptions, Relayed, Side, SocketOptions, alert, configure, refuse, relay, relay_streams,
    reset_on_close,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufStream, duplex},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// More than any of these takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);
const OPTIONS: RelayOptions = RelayOptions { reset_delay: Duration::from_millis(300), max_pipes: 64, settle_b: None };

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A client, a server, and a relay between them.
async fn relayed_pair() -> (TcpStream, TcpStream, JoinHandle<Relayed>) {
    let (client, mut a) = pair().await;
    let (mut b, server) = pair().await;
    let relaying = tokio::spawn(async move { relay(&mut a, &mut b, &OPTIONS).await });
    (client, server, relaying)
}

async fn outcome(relaying: JoinHandle<Relayed>) -> Relayed {
    timeout(PATIENCE, relaying).await.unwrap().unwrap()
}

async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap()?;
    Ok(bytes)
}

/// Bytes in which a swap, a loss or a repetition shows.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_both_ways_at_once_arrives_whole_and_is_counted() {
    let (client, server, relaying) = relayed_pair().await;
    let (up, down) = (pattern(9_000_001, 1), pattern(7_000_003, 2));
    let exchange = |stream: TcpStream, bytes: Vec<u8>| async move {
        let (mut read, mut write) = stream.into_split();
        let writing = tokio::spawn(async move {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        received
    };
    let both = async { tokio::join!(exchange(client, up.clone()), exchange(server, down.clone())) };
    let (at_client, at_server) = timeout(PATIENCE, both).await.unwrap();
    assert!(at_client == down && at_server == up);
    let relayed = outcome(relaying).await;
    assert_eq!((relayed.a_to_b, relayed.b_to_a, relayed.end), (9_000_001, 7_000_003, RelayEnd::Closed));
}

#[tokio::test]
async fn a_client_that_has_ended_still_gets_its_answer() {
    let (mut client, mut server, relaying) = relayed_pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"question");
    // Only now, after the end was seen, the answer is written.
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), b"answer");
    let relayed = outcome(relaying).await;
    assert_eq!((relayed.a_to_b, relayed.b_to_a, relayed.end), (8, 6, RelayEnd::Closed));
    assert!(relayed.first_byte.is_some());
}

#[tokio::test]
async fn a_server_that_has_ended_still_gets_what_the_client_sends() {
    let (mut client, mut server, relaying) = relayed_pair().await;
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
    client.write_all(b"late").await.unwrap();
    drop(client);
    assert_eq!(read_all(&mut server).await.unwrap(), b"late");
    let relayed = outcome(relaying).await;
    assert_eq!((relayed.a_to_b, relayed.first_byte, relayed.end), (4, None, RelayEnd::Closed));
}

#[tokio::test]
async fn a_reset_by_one_side_is_a_reset_for_the_other() {
    for side in [Side::A, Side::B] {
        let (client, server, relaying) = relayed_pair().await;
        let (mut breaks, mut watches) = if side == Side::A { (client, server) } else { (server, client) };
        // Both directions have carried something before.
        breaks.write_all(b"x").await.unwrap();
        assert_eq!(watches.read_u8().await.unwrap(), b'x');
        reset_on_close(&breaks).unwrap();
        drop(breaks);
        assert_eq!(read_all(&mut watches).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(outcome(relaying).await.end, RelayEnd::Reset(side));
    }
}

#[tokio::test]
async fn a_reset_is_passed_on_while_the_other_direction_is_full() {
    let (mut client, mut server, relaying) = relayed_pair().await;
    // Nobody reads at the client: everything between fills up.
    let bytes = pattern(1 << 16, 3);
    while timeout(Duration::from_millis(200), server.write_all(&bytes)).await.is_ok() {}
    client.write_all(b"x").await.unwrap();
    reset_on_close(&client).unwrap();
    drop(client);
    let error = loop {
        match timeout(PATIENCE, server.write_all(&bytes)).await.unwrap() {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
    assert_eq!(outcome(relaying).await.end, RelayEnd::Reset(Side::A));
}

#[tokio::test]
async fn an_answer_that_ended_in_order_is_not_lost_to_the_reset_after_it() {
    let (mut client, mut server, relaying) = relayed_pair().await;
    let answer = pattern(100_000, 4);
    server.write_all(&answer).await.unwrap();
    server.shutdown().await.unwrap();
    // The relay has passed the end on before the server resets.
    let mut first = [0; 100_000];
    client.peek(&mut first[..1]).await.unwrap();
    reset_on_close(&server).unwrap();
    drop(server);
    let started = Instant::now();
    // The client goes on sending; a reset at once would discard the answer on its way.
    let broken = loop {
        if client.write_all(b"more").await.is_err() {
            break started.elapsed();
        }
        assert!(started.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    };
    assert!(broken >= OPTIONS.reset_delay / 2, "reset after {broken:?}");
    timeout(PATIENCE, client.read_exact(&mut first)).await.unwrap().unwrap();
    assert!(first[..] == answer);
    assert_eq!(outcome(relaying).await.end, RelayEnd::Reset(Side::B));
}

#[tokio::test]
async fn a_relay_that_is_dropped_leaves_its_record_behind() {
    let (mut client, mut a) = pair().await;
    let (mut b, mut server) = pair().await;
    let record = Arc::new(Mutex::new(Relayed::default()));
    let kept = Arc::clone(&record);
    let relaying = tokio::spawn(async move {
        struct Keep(Relayed, Arc<Mutex<Relayed>>);
        impl Drop for Keep {
            fn drop(&mut self) {
                *self.1.lock().unwrap() = self.0;
            }
        }
        let mut keep = Keep(Relayed::default(), kept);
        relay::relay_observed(&mut a, &mut b, &OPTIONS, &mut keep.0).await;
    });
    client.write_all(b"ping").await.unwrap();
    server.read_exact(&mut [0; 4]).await.unwrap();
    server.write_all(b"pong!").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    relaying.abort();
    assert!(relaying.await.unwrap_err().is_cancelled());
    let relayed = *record.lock().unwrap();
    assert_eq!((relayed.a_to_b, relayed.b_to_a, relayed.end), (4, 5, RelayEnd::Unfinished));
}

#[tokio::test]
async fn streams_that_hold_bytes_back_are_flushed() {
    let (mut client, a) = duplex(64);
    let (b, mut server) = duplex(64);
    let relaying = tokio::spawn(async move {
        let mut relayed = Relayed::default();
        relay_streams(&mut BufStream::new(a), &mut BufStream::new(b), &OPTIONS, &mut relayed).await;
        relayed
    });
    for round in 0..100_u8 {
        client.write_all(&[round; 100]).await.unwrap();
        let mut received = [0; 100];
        timeout(PATIENCE, server.read_exact(&mut received)).await.unwrap().unwrap();
        assert_eq!(received, [round; 100]);
        server.write_all(&[round]).await.unwrap();
        assert_eq!(timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap(), round);
    }
    drop((client, server));
    let relayed = outcome(relaying).await;
    assert_eq!((relayed.a_to_b, relayed.b_to_a, relayed.end), (10_000, 100, RelayEnd::Closed));
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_told_from_one_that_ends() {
    /// As a TLS stream reads when TCP ended without `close_notify`.
    struct BrokenOff;
    impl tokio::io::AsyncRead for BrokenOff {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
        }
    }
    let (mut b, _server) = duplex(64);
    let mut relayed = Relayed::default();
    relay_streams(&mut tokio::io::join(BrokenOff, tokio::io::sink()), &mut b, &OPTIONS, &mut relayed).await;
    assert_eq!(relayed.end, RelayEnd::Truncated(Side::A));
    assert_eq!(relayed.end.to_reset(), Some(Side::B));
}

#[tokio::test]
async fn a_refused_client_reads_its_alert_though_it_has_sent_more() {
    let (mut client, mut server) = pair().await;
    client.write_all(&pattern(100_000, 5)).await.unwrap();
    server.read_u8().await.unwrap();
    let refusing = tokio::spawn(async move {
        refuse(&mut server, &alert::UNRECOGNIZED_NAME).await.unwrap();
    });
    assert_eq!(read_all(&mut client).await.unwrap(), [21, 3, 3, 0, 2, 2, 112]);
    drop(client);
    timeout(PATIENCE, refusing).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_that_stays_is_dropped_after_the_linger() {
    let (mut client, mut server) = pair().await;
    let started = Instant::now();
    refuse(&mut server, &alert::INTERNAL_ERROR).await.unwrap();
    assert_eq!(started.elapsed(), relay::REFUSAL_LINGER);
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), alert::INTERNAL_ERROR);
}

#[tokio::test]
async fn connections_inherit_the_options_of_their_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = SocketOptions {
        keepalive_idle: Duration::from_secs(11),
        keepalive_interval: Duration::from_secs(3),
        keepalive_probes: 7,
        user_timeout: Some(Duration::from_millis(12_500)),
    };
    configure(&listener, &options).unwrap();
    let address = listener.local_addr().unwrap();
    let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let accepted = accepted.unwrap().0;
    let socket = SockRef::from(&accepted);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), options.keepalive_idle);
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), options.keepalive_interval);
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), options.keepalive_probes);
    assert_eq!(socket.tcp_user_timeout().unwrap(), options.user_timeout);
}
