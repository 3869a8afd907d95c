//! Software of another kind and the mesh's identities: the `spiffe` package of Python and go-spiffe fetch them from a sidecar,
//! and go-spiffe and the mesh complete mutual TLS with each other, also across trust domains that federate by configuration.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "interop/federated.rs"]
mod federated;
#[path = "interop/programs.rs"]
mod programs;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use e2e::demo::story::imported_clusters;
use e2e::lab::binaries::Binaries;
use e2e::lab::{ClusterDescription, Lab, READY, ServiceDescription, wait};
use e2e::shop::Role;
use mesh_tls::pem::certificates_from_pem;
use mesh_tls::{ExpectedPeer, Identity, TrustStore, handshake};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use spiffe_identity::{Bundle, SpiffeId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EAST_CLIENT: &str = "spiffe://east.mesh.example/ns/shop/sa/client";
const NORTH_CLIENT: &str = "spiffe://north.mesh.example/ns/shop/sa/client";
const REDIS: &str = "spiffe://north.mesh.example/ns/shop/sa/redis-cart";
/// Redis' protocol; the last line end is the program's.
const PING: &str = "*1\r\n$4\r\nPING";

/// east with a client, north with a client and an exported store.
async fn lab() -> (Lab, TempDir) {
    lab_with(async |_| {}).await
}

/// The same, with a federation that is `prepared` before anybody joins.
async fn lab_with(prepare: impl AsyncFnOnce(&mut Lab)) -> (Lab, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut lab = Lab::start(directory.path(), Binaries::build().unwrap()).await.unwrap();
    prepare(&mut lab).await;
    let cluster = |name, region, services| ClusterDescription {
        name,
        region,
        zone: region,
        gateways: 1,
        egress_restricted: false,
        services,
        collector: None,
    };
    let redis = ServiceDescription {
        name: "redis-cart",
        role: Role::RedisCart,
        port: 6379,
        target_port: 6379,
        port_name: "tcp-redis",
        replicas: 1,
    };
    lab.add(vec![cluster("east", "eu", Vec::new()), cluster("north", "us", vec![redis])]).await.unwrap();
    lab.cluster("north").unwrap().operator().isthmus(&["export", "shop/redis-cart"]).await.unwrap();
    for cluster in &lab.clusters {
        let operator = cluster.operator();
        wait::until("the store is imported", READY, || async {
            let imports: Value = operator.json(&["get", "imports"]).await?;
            ensure!(imported_clusters(&imports) == 1, "{imports}");
            Ok(())
        })
        .await
        .unwrap();
    }
    (lab, directory)
}

fn socket(lab: &mut Lab, cluster: &str) -> String {
    lab.cluster(cluster).unwrap().workload_api("client").display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_clients_fetch_svids_and_bundles_from_a_sidecar() {
    let (go, python) = (programs::go().await, programs::python().await);
    let (mut lab, _directory) = lab().await;
    let (east, north) = (socket(&mut lab, "east"), socket(&mut lab, "north"));
    let roots = json!({ "east.mesh.example": 1, "north.mesh.example": 1 });

    for (socket, id) in [(&east, EAST_CLIENT), (&north, NORTH_CLIENT)] {
        let got = go.run(&["fetch", "--socket", socket]).await.unwrap();
        assert_eq!(got["id"], id);
        assert_eq!(got["keyFits"], true);
        assert_eq!(got["roots"], roots);
        assert!(got["jwt"].as_str().unwrap().contains("Unimplemented"), "{got}");

        let got = python.run(&[&format!("unix://{socket}")]).await.unwrap();
        assert_eq!(got["id"], id);
        assert_eq!(got["keyFits"], true);
        assert_eq!(got["federated"], json!(["east.mesh.example", "north.mesh.example"]));
        assert_eq!(got["roots"], roots);
        assert!(got["jwt"].as_str().unwrap() != "issued", "{got}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_go_spiffe_client_calls_a_service_of_the_mesh_through_its_gateway() {
    let go = programs::go().await;
    let (mut lab, _directory) = lab().await;
    let east = socket(&mut lab, "east");
    let gateway = lab.cluster("north").unwrap().gateway_address(0).to_string();
    let name = "outbound_.6379_._.redis-cart.shop.svc.clusterset.local";
    let call = |expect: &'static str, alpn: &'static str| {
        let (go, east, gateway) = (go.clone(), east.clone(), gateway.clone());
        async move {
            let to = ["dial", "--socket", &east, "--address", &gateway, "--name", name, "--send", PING];
            go.run(&[&to[..], &["--alpn", alpn, "--expect", expect]].concat()).await
        }
    };
    let got = call(REDIS, "isthmus-tcp").await.unwrap();
    assert_eq!(got, json!({ "peer": REDIS, "answer": "+PONG\r\n" }));

    // One field differs each: whom the client expects, and what it offers to speak.
    let refused = call(NORTH_CLIENT, "isthmus-tcp").await.unwrap_err().to_string();
    assert!(refused.contains("unexpected ID"), "{refused}");
    let refused = call(REDIS, "isthmus-h2").await.unwrap_err().to_string();
    assert!(refused.contains("the verdict is 3"), "{refused}");
    lab.stop().await;
}

/// What the sidecar of a cluster's client has on disk, as a client of the mesh uses it.
fn mesh_client(lab: &mut Lab, cluster: &str) -> (Identity, TrustStore) {
    let state = |lab: &mut Lab, cluster: &str| lab.cluster(cluster).unwrap().directory().join("state");
    let svid = std::fs::read(state(lab, cluster).join("sidecar-client/svid.pem")).unwrap();
    let identity = Identity::from_pem(&svid, &svid).unwrap();
    let trust = TrustStore::new();
    for cluster in ["east", "north"] {
        let root: PathBuf = state(lab, cluster).join("control-plane/root.crt");
        trust.insert(Bundle {
            trust_domain: format!("{cluster}.mesh.example").parse().unwrap(),
            x509_authorities: certificates_from_pem(&std::fs::read(root).unwrap()).unwrap(),
            sequence: 1,
            refresh_hint: None,
        });
    }
    (identity, trust)
}

/// A client of the mesh says a line to a go-spiffe server of north that lets `allowed` in, and reads it back.
async fn call_go_server(lab: &mut Lab, expected: &str, allowed: &str) -> anyhow::Result<String> {
    let go = programs::go().await;
    let north = socket(lab, "north");
    let mut server = go.start(&["serve", "--socket", &north, "--allow", allowed]).await?;
    let address: String = server.line().await?["address"].as_str().unwrap().to_owned();
    let (identity, trust) = mesh_client(lab, "east");
    let expected = ExpectedPeer::exactly(expected.parse::<SpiffeId>()?);
    let config = mesh_tls::client_config(Some(&identity), &trust, expected, &[]);
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("go-server.invalid").unwrap();
    let mut stream = handshake::connect(stream, &config, name, Duration::from_secs(5)).await?;
    stream.write_all(b"hello\n").await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    Ok(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_mesh_and_a_go_spiffe_server_complete_mutual_tls() {
    let (mut lab, _directory) = lab().await;
    assert_eq!(call_go_server(&mut lab, NORTH_CLIENT, EAST_CLIENT).await.unwrap(), "hello\n");
    let refused = call_go_server(&mut lab, REDIS, EAST_CLIENT).await.unwrap_err();
    assert!(format!("{refused:#}").contains(NORTH_CLIENT), "the client says whom it met: {refused:#}");
    let refused = call_go_server(&mut lab, NORTH_CLIENT, REDIS).await.unwrap_err();
    assert!(format!("{refused:#}").to_lowercase().contains("certificate"), "the server's alert: {refused:#}");
    lab.stop().await;
}
