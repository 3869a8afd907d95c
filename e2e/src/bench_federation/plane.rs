//! The federation's keys: what an operator and trust-bundle would have made of that many joins.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use federation::delegation::NamespaceSet;
use federation::{ClusterName, FederationDomain};
use federation_api::record::v1::Member;
use federation_api::signing::{MembershipRoot, PublishKey, Speaker};
use federation_api::token::{JoinToken, TokenRequest};
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{VerifiedMember, verify_member};
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, new_key_and_csr, pem};
use prost::Message;
use rustls::ClientConfig;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tonic::transport::Channel;

const DOMAIN: &str = "mesh.example";
/// Longer than any run.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Where nobody listens: members come from the last good state, as when trust-bundle is down.
const NOWHERE: &str = "127.0.0.1:1";

/// One member: what its control-plane has after its join.
pub(super) struct Joined {
    pub(super) speaker: Arc<Speaker>,
    pub(super) verified: VerifiedMember,
    tls: Arc<ClientConfig>,
}

impl Joined {
    /// A connection of its own to the replicas, the `first` of them first.
    pub(super) fn channel(&self, addresses: &[SocketAddr], first: usize) -> Channel {
        let options = ChannelOptions { start: Some(first), ..ChannelOptions::default() };
        rpc::channel(addresses, Arc::clone(&self.tls), options)
    }
}

/// Makes the members, and writes into `directory` what a replica has: `service` is its service directory, and
/// `trust.last-good` what it keeps in its state directory.
pub(super) fn make(directory: &Path, clusters: usize) -> anyhow::Result<Vec<Joined>> {
    let (federation, trust_domain): (FederationDomain, TrustDomain) = (DOMAIN.parse()?, DOMAIN.parse()?);
    let authority = Authority::open_or_create(directory, &trust_domain, SystemTime::now())?;
    let root = MembershipRoot::generate()?;
    let service = directory.join("service");
    std::fs::create_dir_all(&service)?;
    let id = SpiffeId::service(&trust_domain, "federator")?;
    let (key, csr) = new_key_and_csr()?;
    let svid = authority.issue(&csr, &id, LIFETIME, SystemTime::now())?;
    std::fs::write(service.join("service.crt"), pem::certificates_to_pem(&svid.chain))?;
    std::fs::write(service.join("service.key"), pem::private_key_to_pem(&key).as_bytes())?;
    std::fs::write(service.join("federation-root.crt"), pem::certificates_to_pem(&[authority.root()]))?;
    std::fs::write(service.join("membership-root.pub"), root.public().to_pem())?;
    let file = serde_json::json!({
        "federation": DOMAIN, "trustBundleAddresses": [NOWHERE], "federatorAddresses": [NOWHERE],
    });
    std::fs::write(service.join("federation.json"), file.to_string())?;

    let trust = TrustStore::new();
    let x509_authorities = vec![authority.root()];
    trust.insert(Bundle { trust_domain: trust_domain.clone(), x509_authorities, sequence: 1, refresh_hint: None });
    let expected = ExpectedPeer::AnyOf([id].into());
    let (mut joined, mut members) = (Vec::with_capacity(clusters), Vec::with_capacity(clusters));
    for cluster in 0..clusters {
        let (speaker, member) = join(&root, &authority, &federation, &format!("cluster-{cluster:05}"))?;
        let id = SpiffeId::control_plane(&trust_domain, speaker.cluster.as_str())?;
        let (key, csr) = new_key_and_csr()?;
        let svid = authority.issue(&csr, &id, LIFETIME, SystemTime::now())?;
        let identity = Identity::from_der(svid.chain, key)?;
        let tls = client_config(Some(&identity), &trust, expected.clone(), &[rpc::ALPN]);
        let verified = verify_member(&root.public(), &federation, &member, None).context("a member of our own")?;
        joined.push(Joined { speaker: Arc::new(speaker), verified, tls });
        members.push(member);
    }
    let state = WatchResponse { full: true, members, ..WatchResponse::default() };
    std::fs::write(directory.join("trust.last-good"), state.encode_to_vec())?;
    Ok(joined)
}

fn join(
    root: &MembershipRoot,
    authority: &Authority,
    federation: &FederationDomain,
    name: &str,
) -> anyhow::Result<(Speaker, Member)> {
    let (cluster, now): (ClusterName, _) = (name.parse()?, SystemTime::now());
    let request = TokenRequest {
        federation: federation.clone(),
        cluster: cluster.clone(),
        namespaces: NamespaceSet::All,
        address_ranges: Vec::new(),
        host_names: Vec::new(),
        federation_roots: vec![authority.root().to_vec()],
        trust_bundle_addresses: vec![NOWHERE.to_owned()],
        federator_addresses: vec![NOWHERE.to_owned()],
        created: now,
        lifetime: LIFETIME,
    };
    let token = JoinToken::create(root, request)?;
    let key = PublishKey::generate()?;
    let member = token.member(&key.public(), now);
    Ok((Speaker { federation: federation.clone(), cluster, generation: token.generation(), key }, member))
}
