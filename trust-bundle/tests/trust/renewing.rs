//! Certificates for whoever the caller is, and for nobody else.

use std::time::SystemTime;

use federation_api::client::trust::{TrustCursor, renew};
use mesh_tls::Identity;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe_identity::{SpiffeId, check_leaf};
use svid_issuer::Authority;
use tonic::Code;

use crate::cluster::control_plane;
use crate::plane::{HOUR, Plane, Shut, assert_ended, assert_refused, identity, trust_domain};

/// A request that asks for everything one might wish for.
fn greedy() -> (PrivateKeyDer<'static>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    for id in ["spiffe://mesh.example/cluster/west/control-plane", "spiffe://mesh.example/operator/admin"] {
        params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
    }
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    (PrivateKeyDer::try_from(key.serialize_der()).unwrap(), csr)
}

#[tokio::test]
async fn a_caller_gets_its_own_identity_whatever_it_asks_for() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let operator = SpiffeId::operator(&trust_domain(), "admin").unwrap();
    for caller in [east.identity, plane.federator(), plane.identity(&operator)] {
        let (key, csr) = greedy();
        let renewed = renew(plane.channel(Some(&caller)), csr).await.unwrap();
        assert_eq!(renewed.federation_roots, [plane.authority.root().to_vec()]);
        // These rules leave no room for CA=true, for other key usages or for a second name.
        assert_eq!(check_leaf(&renewed.certificate_chain[0]).unwrap(), caller.spiffe_id().unwrap());
        let chain = renewed.certificate_chain.into_iter().map(CertificateDer::from).collect();
        let renewed = Identity::from_der(chain, key).unwrap();
        let left = renewed.not_after().unwrap().duration_since(SystemTime::now()).unwrap();
        // Operators come by rarely.
        let days = if renewed.spiffe_id() == Some(operator.clone()) { 365 } else { 1 };
        assert!(left <= days * 24 * HOUR && left > (days * 24 - 1) * HOUR, "{left:?}");
        plane.watch(&renewed, TrustCursor::default()).update().await;
    }
}

#[tokio::test]
async fn no_certificate_is_made_from_garbage() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let channel = plane.channel(Some(&east.identity));
    let (_, mut forged) = greedy();
    *forged.last_mut().unwrap() ^= 1;
    for csr in [Vec::new(), vec![0; 64], vec![0x30; 20_000], forged] {
        assert_refused(renew(channel.clone(), csr).await, Code::InvalidArgument, "csr: ");
    }
}

#[tokio::test]
async fn who_has_no_part_in_the_federation_is_refused() {
    let plane = Plane::start().await;
    let refused = async |identity: Option<&Identity>, code, words| {
        assert_refused(renew(plane.channel(identity), greedy().1).await, code, words);
        let mut watcher = crate::plane::watch(plane.channel(identity), TrustCursor::default());
        assert_ended(&watcher.end().await, code, words);
    };
    refused(None, Code::Unauthenticated, "client certificate").await;
    let stranger = plane.identity_of(&control_plane("nowhere"), 1);
    refused(Some(&stranger), Code::PermissionDenied, "nowhere is no member").await;
    let workload = plane.identity(&SpiffeId::workload(&trust_domain(), "shop", "cart").unwrap());
    refused(Some(&workload), Code::PermissionDenied, "no part in the federation").await;
}

#[tokio::test]
async fn a_caller_of_a_foreign_trust_domain_is_refused() {
    let plane = Plane::start().await;
    let member = plane.join("east").await;
    let directory = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let foreign = name.parse().unwrap();
        let authority = Authority::open_or_create(&directory.path().join(name), &foreign, SystemTime::now()).unwrap();
        identity(&authority, &SpiffeId::control_plane(&foreign, "east").unwrap())
    };
    // One names itself, one claims the federation's own name under a root of its own; both carry a member's path.
    for name in ["evil.example", "mesh.example"] {
        let answer = renew(plane.channel(Some(&make(name))), greedy().1).await;
        let status = answer.unwrap_err();
        assert!(!matches!(status.code(), Code::InvalidArgument | Code::DeadlineExceeded), "{status:?}");
        let mut watcher = plane.watch(&make(name), TrustCursor::default());
        let end = watcher.end().await;
        assert!(end.to_string().contains("certificate") || end.to_string().contains("transport"), "{end}");
    }
    // The same path under the federation's own root is answered.
    renew(plane.channel(Some(&plane.identity_of(&control_plane("east"), member.generation()))), greedy().1)
        .await
        .unwrap();
}

#[tokio::test]
async fn who_is_shut_out_gets_no_certificate() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let mut watcher = plane.watch(&west.identity, TrustCursor::default());
    let federator = plane.federator();
    let id = federator.spiffe_id().unwrap().to_string();
    let told = async |watcher: &mut crate::plane::Watcher, epoch: u64| loop {
        use prost::Message;
        let Some(signed) = watcher.update().await.deny_list else { continue };
        if federation_api::record::v1::DenyList::decode(signed.message.as_ref()).unwrap().epoch == epoch {
            return;
        }
    };
    plane.store_deny_list(1, &[Shut::Cluster("east")]).await;
    told(&mut watcher, 1).await;
    let refused = renew(plane.channel(Some(&east.identity)), greedy().1).await;
    assert_refused(refused, Code::PermissionDenied, "cluster east is quarantined");
    renew(plane.channel(Some(&federator)), greedy().1).await.unwrap();

    plane.store_deny_list(2, &[Shut::Identity(&id)]).await;
    told(&mut watcher, 2).await;
    let refused = renew(plane.channel(Some(&federator)), greedy().1).await;
    assert_refused(refused, Code::PermissionDenied, &format!("{id} is quarantined"));
    renew(plane.channel(Some(&east.identity)), greedy().1).await.unwrap();

    plane.store_deny_list(3, &[Shut::Generation("east", u64::MAX)]).await;
    told(&mut watcher, 3).await;
    let refused = renew(plane.channel(Some(&east.identity)), greedy().1).await;
    assert_refused(refused, Code::PermissionDenied, "evicted");
}
