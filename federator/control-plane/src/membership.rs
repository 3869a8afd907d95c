//! The cluster's membership in the federation: made from a join token, kept on disk, renewed at half life.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use federation::{ClusterName, FederationDomain, RecordKey};
use federation_api::client::trust;
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, PublishKeyGrant, Signed};
use federation_api::signing::{PublicKey, PublishKey, SequenceClock, Speaker};
use federation_api::token::JoinToken;
use federation_api::verify::{MAX_GRANTS, VerifiedMember, verify_member};
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, new_key_and_csr};
use prost::Message as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};

use crate::publications::Successor;
use crate::state::{StateDirectory, StateError, json_bytes};

/// The file's name.
const FILE: &str = "membership.json";

/// Why a cluster did not become a member, or a membership cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The token is for another cluster.
    #[error("the token is for cluster {found}, this is {expected}")]
    OtherCluster {
        /// The token's.
        found: ClusterName,
        /// The configured one.
        expected: ClusterName,
    },
    /// The token is of another federation.
    #[error("the token is of federation {found}, this cluster is configured for {expected}")]
    OtherFederation {
        /// The token's.
        found: FederationDomain,
        /// The configured one.
        expected: FederationDomain,
    },
    /// The token is not newer than the membership there is.
    #[error(
        "the cluster is a member already, and the token (generation {found}) is not newer than that (generation {current})"
    )]
    NotNewer {
        /// The token's generation.
        found: u64,
        /// The membership's.
        current: u64,
    },
    /// The trust-bundle refused, or could not be reached.
    #[error("trust-bundle: {}: {}", .0.code(), .0.message())]
    Refused(Box<tonic::Status>),
    /// What came back, or was on disk, cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
}

fn unusable(error: impl std::fmt::Display) -> MembershipError {
    MembershipError::Unusable(error.to_string())
}

/// A membership with its secrets.
pub struct Membership {
    /// The membership root that was pinned at the join.
    pub root: PublicKey,
    /// The chain that makes it a membership.
    pub member: Member,
    /// The same, verified.
    pub verified: VerifiedMember,
    /// `host:port` of each trust-bundle.
    pub trust_bundle_addresses: Vec<String>,
    /// `host:port` of each federator.
    pub federator_addresses: Vec<String>,
    /// It is on its way out: everything is withdrawn, and then it ends.
    pub leaving: bool,
    publish_key: Vec<u8>,
    next_key: Option<NextKey>,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    federation_roots: Vec<CertificateDer<'static>>,
}

/// A publish key that is to replace the present one.
#[derive(Clone)]
pub struct NextKey {
    /// It speaks with sequences above this one.
    pub after: u64,
    /// The trust state tells of it from this epoch on; `None` until the trust-bundle has it.
    pub epoch: Option<u64>,
    key: Vec<u8>,
    grant: Signed,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SavedNextKey {
    after: u64,
    epoch: Option<u64>,
    key: String,
    grant: String,
}

/// As it is on disk; bytes in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    membership_root: String,
    member: String,
    publish_key: String,
    certificate_chain: Vec<String>,
    certificate_key: String,
    federation_roots: Vec<String>,
    trust_bundle_addresses: Vec<String>,
    federator_addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_publish_key: Option<SavedNextKey>,
    #[serde(default)]
    leaving: bool,
}

impl Membership {
    /// The membership on disk, verified again under its pinned root.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub fn load(state: &StateDirectory, federation: &FederationDomain) -> Result<Option<Self>, MembershipError> {
        let Some(saved) = state.read_json::<Saved>(FILE)? else { return Ok(None) };
        let root = PublicKey::from_bytes(&decode(&saved.membership_root)?).map_err(unusable)?;
        let member = Member::decode(decode(&saved.member)?.as_slice()).map_err(unusable)?;
        let verified = verify_member(&root, federation, &member, None).map_err(unusable)?;
        Ok(Some(Self {
            root,
            member,
            verified,
            trust_bundle_addresses: saved.trust_bundle_addresses,
            federator_addresses: saved.federator_addresses,
            leaving: saved.leaving,
            publish_key: decode(&saved.publish_key)?,
            next_key: saved.next_publish_key.map(NextKey::load).transpose()?,
            chain: certificates(&saved.certificate_chain)?,
            key: decode(&saved.certificate_key)?,
            federation_roots: certificates(&saved.federation_roots)?,
        }))
    }

    /// Writes it down. Blocks on the disk.
    ///
    /// # Errors
    /// [`MembershipError::State`]
    pub fn save(&self, state: &StateDirectory) -> Result<(), MembershipError> {
        let texts = |certificates: &[CertificateDer<'_>]| certificates.iter().map(|der| STANDARD.encode(der)).collect();
        let saved = Saved {
            membership_root: STANDARD.encode(self.root.as_bytes()),
            member: STANDARD.encode(self.member.encode_to_vec()),
            publish_key: STANDARD.encode(&self.publish_key),
            certificate_chain: texts(&self.chain),
            certificate_key: STANDARD.encode(&self.key),
            federation_roots: texts(&self.federation_roots),
            trust_bundle_addresses: self.trust_bundle_addresses.clone(),
            federator_addresses: self.federator_addresses.clone(),
            next_publish_key: self.next_key.as_ref().map(NextKey::saved),
            leaving: self.leaving,
        };
        Ok(state.write(FILE, &json_bytes(&saved).map_err(unusable)?)?)
    }

    /// Who speaks for the cluster.
    ///
    /// # Errors
    /// The key on disk is damaged.
    pub fn speaker(&self) -> Result<Speaker, MembershipError> {
        self.speaker_with(&self.publish_key)
    }

    /// Who speaks next, once the trust-bundle has the grant.
    ///
    /// # Errors
    /// The key on disk is damaged.
    pub fn successor(&self) -> Result<Option<Successor>, MembershipError> {
        let granted = self.next_key.as_ref().filter(|next| next.epoch.is_some());
        granted.map(|next| Ok(Successor { after: next.after, speaker: self.speaker_with(&next.key)? })).transpose()
    }

    /// Whose key a statement with this sequence is signed with.
    ///
    /// # Errors
    /// The key on disk is damaged.
    pub fn speaker_of(&self, sequence: u64) -> Result<Speaker, MembershipError> {
        match self.successor()? {
            Some(successor) if sequence > successor.after => Ok(successor.speaker),
            _ => self.speaker(),
        }
    }

    fn speaker_with(&self, key: &[u8]) -> Result<Speaker, MembershipError> {
        Ok(Speaker {
            federation: self.verified.federation().clone(),
            cluster: self.verified.cluster().clone(),
            generation: self.verified.generation(),
            key: PublishKey::from_pkcs8(key).map_err(unusable)?,
        })
    }

    /// The publish key that is to replace the present one, if there is one.
    #[must_use]
    pub fn next_key(&self) -> Option<&NextKey> {
        self.next_key.as_ref()
    }

    /// Makes the next publish key, and its grant under the present one: to be written down before anybody is told.
    ///
    /// # Errors
    /// No more keys are granted to one membership, or none can be made.
    pub fn prepare_key(&mut self, after: u64) -> Result<(), MembershipError> {
        if self.member.grants.len() >= MAX_GRANTS {
            return Err(unusable(
                "the membership has had all the publish keys it may have: join again with a new token",
            ));
        }
        let key = PublishKey::generate().map_err(unusable)?;
        let grant = PublishKeyGrant {
            federation: self.verified.federation().to_string(),
            cluster: self.verified.cluster().to_string(),
            generation: self.verified.generation(),
            publish_public_key: key.public().as_bytes().to_vec(),
            joined_at_ms: i64::try_from(unix_milliseconds(self.verified.joined())).unwrap_or(i64::MAX),
            after_sequence: after,
        };
        let grant = PublishKey::from_pkcs8(&self.publish_key).map_err(unusable)?.grant(&grant);
        self.next_key = Some(NextKey { after, epoch: None, key: key.to_pkcs8().map_err(unusable)?, grant });
        Ok(())
    }

    /// The membership with the next key's grant.
    #[must_use]
    pub fn next_member(&self, next: &NextKey) -> Member {
        let mut member = self.member.clone();
        member.grants.push(next.grant.clone());
        member
    }

    /// The trust-bundle has the grant: from the next key's first sequence on, only that one speaks.
    ///
    /// # Errors
    /// The grant does not hold.
    pub fn confirm_key(&mut self, epoch: u64) -> Result<(), MembershipError> {
        let Some(mut next) = self.next_key.clone() else { return Ok(()) };
        let member = self.next_member(&next);
        self.verified = verify_member(&self.root, self.verified.federation(), &member, None).map_err(unusable)?;
        self.member = member;
        next.epoch = Some(epoch);
        self.next_key = Some(next);
        Ok(())
    }

    /// The next key is the present one; the one before is destroyed.
    pub fn finish_key(&mut self) {
        if let Some(next) = self.next_key.take_if(|next| next.epoch.is_some()) {
            self.publish_key = next.key;
        }
    }

    /// The certificate and key for the federation's plane.
    ///
    /// # Errors
    /// The certificate is no SVID, or the key is not its own.
    pub fn identity(&self) -> Result<Identity, MembershipError> {
        Identity::from_der(self.chain.clone(), private_key(&self.key)).map_err(unusable)
    }

    /// Whom to believe in the federation's plane.
    #[must_use]
    pub fn plane_bundle(&self, federation: &TrustDomain) -> Bundle {
        plane_bundle(federation, self.federation_roots.clone())
    }

    /// Takes on other roots of the federation. Returns whether they differ.
    pub fn replace_federation_roots(&mut self, roots: Vec<CertificateDer<'static>>) -> bool {
        let differ = !roots.is_empty() && roots != self.federation_roots;
        if differ {
            self.federation_roots = roots;
        }
        differ
    }

    /// Takes on a renewed certificate.
    pub fn replace_certificate(&mut self, chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'_>) {
        self.chain = chain;
        self.key = key.secret_der().to_vec();
    }
}

impl NextKey {
    fn load(saved: SavedNextKey) -> Result<Self, MembershipError> {
        Ok(Self {
            after: saved.after,
            epoch: saved.epoch,
            key: decode(&saved.key)?,
            grant: Signed::decode(decode(&saved.grant)?.as_slice()).map_err(unusable)?,
        })
    }

    fn saved(&self) -> SavedNextKey {
        SavedNextKey {
            after: self.after,
            epoch: self.epoch,
            key: STANDARD.encode(&self.key),
            grant: STANDARD.encode(self.grant.encode_to_vec()),
        }
    }
}

/// Forgets an ended membership. Blocks on the disk.
///
/// # Errors
/// The file cannot be removed.
pub fn remove(state: &StateDirectory) -> Result<(), StateError> {
    state.remove(FILE)
}

fn unix_milliseconds(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn plane_bundle(federation: &TrustDomain, roots: Vec<CertificateDer<'static>>) -> Bundle {
    Bundle { trust_domain: federation.clone(), x509_authorities: roots, sequence: 0, refresh_hint: None }
}

/// Turns a token into a membership: makes the keys, which never travel, and asks the trust-bundle.
///
/// # Errors
/// [`MembershipError`]; nothing is written then.
pub async fn join(
    token: &JoinToken,
    current: Option<u64>,
    bundle: &Bundle,
    cluster: &ClusterName,
    federation: &FederationDomain,
) -> Result<Membership, MembershipError> {
    check_token(token, current, cluster, federation)?;
    let publish_key = PublishKey::generate().map_err(unusable)?;
    let publish_key_der = publish_key.to_pkcs8().map_err(unusable)?;
    let now = SystemTime::now();
    let member = token.member(&publish_key.public(), now);
    let verified = verify_member(&token.membership_root(), federation, &member, Some(now)).map_err(unusable)?;
    let speaker = Speaker {
        federation: federation.clone(),
        cluster: cluster.clone(),
        generation: token.generation(),
        key: publish_key,
    };
    let bundle = sign_bundle(&speaker, bundle, SequenceClock::after(0).next(now), now)?;
    let (key, csr) = new_key_and_csr().map_err(unusable)?;
    let plane: TrustDomain = federation.as_str().parse().map_err(unusable)?;
    let trust = TrustStore::new();
    let roots: Vec<_> = token.federation_roots().iter().cloned().map(CertificateDer::from).collect();
    trust.insert(plane_bundle(&plane, roots.clone()));
    let channel = trust_bundle_channel(token.trust_bundle_addresses(), None, &trust, &plane)?;
    let response = trust::join(channel, member.clone(), csr, bundle)
        .await
        .map_err(|status| MembershipError::Refused(Box::new(status)))?;
    let chain: Vec<_> = response.certificate_chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    check_certificate(&chain, &key, &plane, cluster)?;
    let newer: Vec<_> = response.federation_roots.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    Ok(Membership {
        root: token.membership_root(),
        member,
        verified,
        trust_bundle_addresses: token.trust_bundle_addresses().to_vec(),
        federator_addresses: token.federator_addresses().to_vec(),
        leaving: false,
        publish_key: publish_key_der,
        next_key: None,
        chain,
        key: key.secret_der().to_vec(),
        federation_roots: if newer.is_empty() { roots } else { newer },
    })
}

/// What is wrong with a token before anybody is asked.
///
/// # Errors
/// [`MembershipError`]
pub fn check_token(
    token: &JoinToken,
    current: Option<u64>,
    cluster: &ClusterName,
    federation: &FederationDomain,
) -> Result<(), MembershipError> {
    if token.federation() != federation {
        let (found, expected) = (token.federation().clone(), federation.clone());
        return Err(MembershipError::OtherFederation { found, expected });
    }
    if token.cluster() != cluster {
        return Err(MembershipError::OtherCluster { found: token.cluster().clone(), expected: cluster.clone() });
    }
    match current {
        Some(current) if token.generation() <= current => {
            Err(MembershipError::NotNewer { found: token.generation(), current })
        }
        _ => Ok(()),
    }
}

/// A certificate from the trust-bundle must name this cluster's control-plane and nobody else.
pub(crate) fn check_certificate(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    plane: &TrustDomain,
    cluster: &ClusterName,
) -> Result<Identity, MembershipError> {
    let identity = Identity::from_der(chain.to_vec(), key.clone_key()).map_err(unusable)?;
    let expected = SpiffeId::control_plane(plane, cluster.as_str()).map_err(unusable)?;
    match identity.spiffe_id() {
        Some(found) if found == expected => Ok(identity),
        found => {
            let found = found.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
            Err(unusable(format_args!("the certificate names {found}, expected is {expected}")))
        }
    }
}

/// The record of the cluster's own bundle.
///
/// # Errors
/// The bundle is not one that a record can carry.
pub(crate) fn sign_bundle(
    speaker: &Speaker,
    bundle: &Bundle,
    sequence: u64,
    now: SystemTime,
) -> Result<Signed, MembershipError> {
    let payload =
        Payload::Bundle { trust_domain: bundle.trust_domain.to_string(), jwks: bundle.to_jwks().into_bytes() };
    speaker.sign(sequence, now, &RecordKey::Bundle, &payload).map_err(unusable)
}

/// A channel to the trust-bundle; without an identity only `Join` can be called.
///
/// # Errors
/// The federation's domain is too long for a trust domain.
pub(crate) fn trust_bundle_channel(
    addresses: &[String],
    identity: Option<&Identity>,
    trust: &TrustStore,
    plane: &TrustDomain,
) -> Result<tonic::transport::Channel, MembershipError> {
    plane_channel(addresses, identity, trust, plane, "trust-bundle")
}

/// A channel to a service of the federation.
///
/// # Errors
/// As [`trust_bundle_channel`].
pub(crate) fn plane_channel(
    addresses: &[String],
    identity: Option<&Identity>,
    trust: &TrustStore,
    plane: &TrustDomain,
    service: &str,
) -> Result<tonic::transport::Channel, MembershipError> {
    let expected = ExpectedPeer::exactly(SpiffeId::service(plane, service).map_err(unusable)?);
    let config = client_config(identity, trust, expected, &[rpc::ALPN]);
    Ok(rpc::channel(addresses, config, ChannelOptions::default()))
}

fn decode(text: &str) -> Result<Vec<u8>, MembershipError> {
    STANDARD.decode(text).map_err(unusable)
}

fn certificates(texts: &[String]) -> Result<Vec<CertificateDer<'static>>, MembershipError> {
    texts.iter().map(|text| decode(text).map(CertificateDer::from)).collect()
}

fn private_key(der: &[u8]) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.to_vec()))
}
