//! The reader driven over a stream, with a deadline in paused time.

use std::{io, time::Duration};

use relay::{ClientHelloError, HelloLimits, ReadHelloError, read_client_hello};
use tokio::io::{AsyncWriteExt, duplex};

use super::hand_made::{Parts, host_name};

const LIMITS: HelloLimits = HelloLimits { max_bytes: 1024, deadline: Duration::from_secs(3) };

#[tokio::test(start_paused = true)]
async fn a_hello_in_pieces_is_read_and_kept() {
    let (mut client, mut server) = duplex(7);
    let bytes = Parts::with_extensions(&[host_name(b"echo.shop")]).record();
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client
    });
    let (hello, kept) = read_client_hello(&mut server, &LIMITS).await.unwrap();
    assert_eq!(hello.server_name.as_deref(), Some("echo.shop"));
    assert_eq!(*kept, *bytes);
    drop(sending.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_slow_hello_is_given_up_at_the_deadline() {
    let (mut client, mut server) = duplex(4096);
    let started = tokio::time::Instant::now();
    let sending = tokio::spawn(async move {
        for byte in Parts::default().record() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    });
    let error = read_client_hello(&mut server, &LIMITS).await.unwrap_err();
    assert!(matches!(error, ReadHelloError::TooSlow { deadline } if deadline == LIMITS.deadline), "{error:?}");
    assert_eq!(started.elapsed(), LIMITS.deadline);
    assert_eq!(error.alert(), None);
    drop(server);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_client_that_closes_early_is_told_from_one_that_is_refused() {
    let (mut client, mut server) = duplex(4096);
    client.write_all(&Parts::default().record()[..17]).await.unwrap();
    drop(client);
    let error = read_client_hello(&mut server, &LIMITS).await.unwrap_err();
    assert!(matches!(error, ReadHelloError::Closed { received: 17 }), "{error:?}");

    let (mut client, mut server) = duplex(4096);
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = read_client_hello(&mut server, &LIMITS).await.unwrap_err();
    assert!(matches!(error, ReadHelloError::Refused(ClientHelloError::NotTls)), "{error:?}");
}

#[tokio::test]
async fn no_more_than_the_limit_is_read() {
    let (mut client, mut server) = duplex(1 << 20);
    client.write_all(&[&[22, 3, 1, 3, 0xfb][..], &[1, 0, 3, 0xf8], &[0; 100_000]].concat()).await.unwrap();
    let error = read_client_hello(&mut server, &LIMITS).await.unwrap_err();
    assert!(matches!(error, ReadHelloError::Refused(ClientHelloError::TooLarge { max_bytes: 1024 })), "{error:?}");
}

#[tokio::test]
async fn a_failing_stream_is_reported_as_such() {
    let mut stream = reset_stream();
    let error = read_client_hello(&mut stream, &LIMITS).await.unwrap_err();
    assert!(
        matches!(&error, ReadHelloError::Io(source) if source.kind() == io::ErrorKind::ConnectionReset),
        "{error:?}"
    );
}

/// A stream whose first read fails as one on a reset connection does.
fn reset_stream() -> impl tokio::io::AsyncRead + Unpin {
    struct Reset;
    impl tokio::io::AsyncRead for Reset {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    Reset
}
