//! What a wake-up costs in memory. A test program of its own, for it counts allocations.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use allocation_counter::measure;
use relay::{RelayOptions, relay};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream, bytes: &[u8], answer: &mut [u8]) {
    let (written, received) = tokio::join!(client.write_all(bytes), server.read_exact(answer));
    written.unwrap();
    received.unwrap();
}

#[test]
fn neither_messages_nor_bulk_allocate_once_the_first_have_passed() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (mut client, mut server) = runtime.block_on(async {
        let (client, mut a) = pair().await;
        let (mut b, server) = pair().await;
        tokio::spawn(async move { relay(&mut a, &mut b, &RelayOptions::default()).await });
        (client, server)
    });
    for size in [100, 2_000_000] {
        let (bytes, mut answer) = (vec![7; size], vec![0; size]);
        let mut exchanges = |count| {
            runtime.block_on(async {
                for _ in 0..count {
                    exchange(&mut client, &mut server, &bytes, &mut answer).await;
                    exchange(&mut server, &mut client, &bytes, &mut answer).await;
                }
            });
        };
        exchanges(10);
        let measured = measure(|| exchanges(20));
        assert_eq!(measured.count_total, 0, "{size} bytes: {measured:?}");
    }
}
