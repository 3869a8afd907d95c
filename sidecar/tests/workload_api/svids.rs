//! What programs are handed, and when again.

use std::collections::HashMap;
use std::time::Duration;

use federation_api::discovery::v1::TrustBundle;
use federation_api::discovery::v1::resource::Resource as Kind;
use mesh_tls::Identity;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::client::v1::{X509svid, X509svidResponse};
use crate::client::{bundles, connect, next, pod, silent, svids, until};
use crate::cluster::{Cluster, ready};

/// The certificates of a chain, which lie one after the other.
fn certificates(mut der: &[u8]) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        assert_eq!(der[..2], [0x30, 0x82], "a certificate of more than 255 bytes begins");
        let length = 4 + usize::from(u16::from_be_bytes([der[2], der[3]]));
        let (one, rest) = der.split_at(length);
        found.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    found
}

/// As a foreign program would read it: the key must be PKCS#8 and the certificate's.
fn identity(svid: &X509svid) -> Identity {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone()));
    Identity::from_der(certificates(&svid.x509_svid), key).unwrap()
}

fn root(cluster: &Cluster) -> Vec<u8> {
    cluster.state().authority().root().to_vec()
}

fn set_roots(cluster: &Cluster, of: &Cluster, roots: Vec<Vec<u8>>, sequence: u64) {
    let trust_domain = of.state().trust_domain().to_string();
    let bundle = TrustBundle { trust_domain: trust_domain.clone(), x509_authorities: roots, sequence };
    cluster.state().set(&format!("trust/{trust_domain}"), Kind::TrustBundle(bundle));
}

#[tokio::test]
async fn the_first_message_comes_at_once_and_is_the_whole_state() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    east.trusts(&west);
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut client = connect(&socket).await;
    let mut stream = svids(&mut client).await.unwrap();
    let X509svidResponse { svids, crl, federated_bundles } = next(&mut stream).await.unwrap().unwrap();
    assert_eq!((svids.len(), crl.len()), (1, 0));
    assert_eq!(svids[0].spiffe_id, east.identity("frontend"));
    let identity = identity(&svids[0]);
    assert_eq!(identity.spiffe_id().unwrap().to_string(), svids[0].spiffe_id);
    assert_eq!(svids[0].bundle, root(&east));
    assert_eq!(federated_bundles, HashMap::from([("spiffe://west.mesh.example".to_owned(), root(&west))]));
    let all = next(&mut bundles(&mut client).await.unwrap()).await.unwrap().unwrap();
    let wanted = [("spiffe://east.mesh.example", root(&east)), ("spiffe://west.mesh.example", root(&west))];
    assert_eq!(all.bundles, wanted.map(|(id, roots)| (id.to_owned(), roots)).into());
    let metrics = pod.process.metrics_text().unwrap();
    assert!(metrics.contains("workload_api_calls_total{call=\"FetchX509SVID\",code=\"ok\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_renewed_svid_is_sent_with_its_own_key() {
    let east = Cluster::start_with_lifetime("east", Duration::from_secs(3)).await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut stream = svids(&mut connect(&socket).await).await.unwrap();
    let first = next(&mut stream).await.unwrap().unwrap();
    let second = next(&mut stream).await.unwrap().unwrap();
    assert_ne!(first.svids[0].x509_svid_key, second.svids[0].x509_svid_key);
    assert!(identity(&second.svids[0]).not_after() > identity(&first.svids[0]).not_after());
}

#[tokio::test]
async fn a_new_root_is_sent_and_a_lost_one_withdrawn() {
    let (east, west) = (Cluster::start("east").await, Cluster::start("west").await);
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut client = connect(&socket).await;
    let mut with_svid = svids(&mut client).await.unwrap();
    let mut without = bundles(&mut client).await.unwrap();
    assert!(next(&mut with_svid).await.unwrap().unwrap().federated_bundles.is_empty());
    assert_eq!(next(&mut without).await.unwrap().unwrap().bundles.len(), 1);
    silent(&mut without).await;

    let west_id = "spiffe://west.mesh.example";
    east.trusts(&west);
    let told = until(&mut with_svid, |message| !message.federated_bundles.is_empty()).await;
    assert_eq!(told.federated_bundles[west_id], root(&west));
    assert_eq!(until(&mut without, |message| message.bundles.len() == 2).await.bundles[west_id], root(&west));

    // Its only root is gone: nobody of it may be believed any more.
    set_roots(&east, &west, Vec::new(), 2);
    assert!(until(&mut with_svid, |message| message.federated_bundles.is_empty()).await.svids.len() == 1);
    assert!(!until(&mut without, |message| message.bundles.len() == 1).await.bundles.contains_key(west_id));
}

#[tokio::test]
async fn two_roots_of_a_rotation_are_both_sent() {
    let (east, other) = (Cluster::start("east").await, Cluster::start("east").await);
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut stream = svids(&mut connect(&socket).await).await.unwrap();
    let first = next(&mut stream).await.unwrap().unwrap();
    assert_eq!(certificates(&first.svids[0].bundle).len(), 1);
    set_roots(&east, &east, vec![root(&east), root(&other)], 2);
    let both = until(&mut stream, |message| message.svids[0].bundle.len() > first.svids[0].bundle.len()).await;
    assert_eq!(certificates(&both.svids[0].bundle).len(), 2);
}

#[tokio::test]
async fn streams_end_with_the_sidecar() {
    let east = Cluster::start("east").await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    ready(&pod.process).await;
    let mut stream = svids(&mut connect(&socket).await).await.unwrap();
    next(&mut stream).await.unwrap().unwrap();
    pod.sidecar.stop().await;
    assert_eq!(next(&mut stream).await.unwrap_err().code(), tonic::Code::Unavailable);
}
