//! A connection to the API server that carries nothing any more, without a word.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use control_plane::kubernetes::{KubernetesConfig, connect};
use control_plane::reconciler::Input;
use control_plane::source::{KubernetesSource, Source as _};
use e2e::kubernetes::{ACCOUNT, ApiServers};
use kube::config::Kubeconfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::objects::SOON;
use crate::with_lab;

/// 30 seconds until it is noticed, and a little to connect and list again.
const NOTICED: Duration = Duration::from_secs(33);

/// Passes connections on. Those that are open when `frozen` changes stay open and carry nothing more.
async fn relay(listener: TcpListener, target: SocketAddr, frozen: watch::Receiver<()>) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut frozen = frozen.clone();
        frozen.mark_unchanged();
        tokio::spawn(async move {
            let mut server = TcpStream::connect(target).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = frozen.changed() => std::future::pending().await,
            }
        });
    }
}

/// The control-plane's kubeconfig, by way of another address.
async fn kubeconfig(servers: &ApiServers, through: SocketAddr) -> (std::path::PathBuf, SocketAddr) {
    let file = servers.account_kubeconfig(ACCOUNT.0, ACCOUNT.1).await.unwrap();
    let mut config = Kubeconfig::read_from(&file).unwrap();
    let cluster = config.clusters[0].cluster.as_mut().unwrap();
    let server = cluster.server.replace(format!("https://{through}")).unwrap();
    let target: SocketAddr = server.strip_prefix("https://").unwrap().parse().unwrap();
    let name: IpAddr = target.ip();
    cluster.tls_server_name = Some(name.to_string());
    let path = file.with_extension("through");
    std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
    (path, target)
}

#[test]
fn a_connection_that_falls_silent_is_noticed_within_30_seconds() {
    with_lab(async |lab| {
        let servers = &lab.clusters[0].servers;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (path, target) = kubeconfig(servers, listener.local_addr().unwrap()).await;
        let (freeze, frozen) = watch::channel(());
        tokio::spawn(relay(listener, target, frozen));
        let config = KubernetesConfig { kubeconfig: Some(path), ..KubernetesConfig::default() };
        let source = KubernetesSource::new(connect(&config).await.unwrap());
        let (sender, mut inputs) = mpsc::channel(64);
        let task = tokio::spawn(source.run(sender));
        let hears = async |inputs: &mut mpsc::Receiver<Input>, deadline: Instant, what: &str| loop {
            match timeout_at(deadline, inputs.recv()).await {
                Ok(Some(Input::Source(update))) if format!("{update:?}").contains(what) => return,
                Ok(Some(_)) => {}
                other => panic!("{what}: {other:?}"),
            }
        };
        hears(&mut inputs, Instant::now() + SOON, "synced: true").await;
        freeze.send_replace(());
        let begun = Instant::now();
        servers.namespace("said-into-silence").await.unwrap();
        hears(&mut inputs, begun + NOTICED, "said-into-silence").await;
        task.abort();
    });
}
