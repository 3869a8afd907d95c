//! An east-west gateway as small as it can be: reads the SNI, picks an endpoint by slot, copies bytes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use federation::sni::Subset;
use federation::{Sni, slot};
use relay::{HelloLimits, RelayOptions};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::LOOPBACK;

/// A running gateway; dropping it kills it with its connections.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    frozen: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

type Endpoints = Arc<Mutex<Vec<(String, SocketAddr)>>>;

impl Gateway {
    pub(crate) async fn start(endpoints: Vec<(String, SocketAddr)>) -> Self {
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoints: Endpoints = Arc::new(Mutex::new(endpoints));
        let frozen = watch::Sender::new(false);
        let freezing = frozen.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (endpoints, mut frozen) = (Arc::clone(&endpoints), freezing.subscribe());
                connections.spawn(async move {
                    tokio::select! {
                        () = carry(&mut stream, endpoints) => {}
                        () = told(&mut frozen) => {
                            // As packets are dropped: neither an end nor a reset.
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { address, frozen, tasks }
    }

    /// Carries nothing any more, and closes nothing.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn carry(stream: &mut TcpStream, endpoints: Endpoints) {
    let Ok((hello, bytes)) = relay::read_client_hello(stream, &HelloLimits::default()).await else { return };
    let sni: Sni = hello.server_name.unwrap().parse().unwrap();
    let endpoint = {
        let endpoints = endpoints.lock().unwrap();
        let number = match sni.subset {
            Subset::Slot(_, number) => number,
            _ => 0,
        };
        slot::choose(number, endpoints.iter().map(|(id, _)| (id, 1))).map(|place| endpoints[place].1)
    };
    let Some(endpoint) = endpoint else { return };
    let Ok(mut endpoint) = TcpStream::connect(endpoint).await else { return };
    endpoint.write_all(&bytes).await.unwrap();
    relay::relay(stream, &mut endpoint, &RelayOptions::default()).await;
}

async fn told(frozen: &mut watch::Receiver<bool>) {
    // An error: the gateway is gone, and this task with it.
    let _ = frozen.wait_for(|frozen| *frozen).await;
}
