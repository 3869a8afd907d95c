//! A program that uses the Workload API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use sidecar::config::WorkloadApiConfig;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::{Cluster, PATIENCE, Pod};

#[rustfmt::skip]
#[path = "generated/client.rs"]
#[expect(unreachable_pub, reason = "generated code")]
pub(crate) mod v1;

pub(crate) use v1::spiffe_workload_api_client::SpiffeWorkloadApiClient as Client;
use v1::{X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse};

/// A connection of its own to a socket.
pub(crate) async fn connect(socket: &Path) -> Client<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://workload-api").connect_with_connector(connector).await.unwrap();
    Client::new(channel)
}

/// With the metadata that the standard asks for.
pub(crate) fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

pub(crate) async fn svids(client: &mut Client<Channel>) -> Result<Streaming<X509svidResponse>, Status> {
    client.fetch_x509svid(asked(X509svidRequest {})).await.map(Response::into_inner)
}

pub(crate) async fn bundles(client: &mut Client<Channel>) -> Result<Streaming<X509BundlesResponse>, Status> {
    client.fetch_x509_bundles(asked(X509BundlesRequest {})).await.map(Response::into_inner)
}

/// The next message of a stream, which must come soon.
pub(crate) async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap()
}

/// The next message that fits; those before it are passed over.
pub(crate) async fn until<T>(stream: &mut Streaming<T>, fits: impl Fn(&T) -> bool) -> T {
    loop {
        let message = next(stream).await.unwrap().unwrap();
        if fits(&message) {
            return message;
        }
    }
}

/// Nothing comes, for a moment in which anything wrong would.
pub(crate) async fn silent<T>(stream: &mut Streaming<T>) {
    assert!(tokio::time::timeout(Duration::from_millis(200), stream.message()).await.is_err(), "a message came");
}

/// A workload whose sidecar has a socket; it need not be ready.
pub(crate) async fn pod(cluster: &Cluster, name: &str) -> (Pod, PathBuf) {
    cluster.workload(name, "frontend", &[]);
    let mut config = cluster.config(name, "frontend");
    let socket = config.state_directory.with_extension("sock");
    config.workload_api = Some(WorkloadApiConfig { socket: socket.clone() });
    (cluster.pod_with(config, "frontend").await, socket)
}
