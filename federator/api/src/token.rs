//! The join token: all that a cluster needs to become a member, in one line of text.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use federation::delegation::NamespaceSet;
use federation::{ClusterName, FederationDomain};
use ipnet::IpNet;
use prost::Message as _;

use crate::record::v1::{self as wire, Member, Signed};
use crate::signing::{KeyError, MembershipRoot, PublicKey, PublishKey, TokenKey};
use crate::unix;
use crate::verify::{MemberError, VerifiedDelegation, verify_delegation};

/// What every token starts with, so that scanners for leaked secrets can know it.
pub const PREFIX: &str = "isthmus-join-";
/// A longer text is no token.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// How many bytes of its digest follow the message.
const CHECKSUM_BYTES: usize = 8;
/// How long a token can be used unless said otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Why a text is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Does not start with [`PREFIX`].
    #[error("a join token starts with {PREFIX:?}")]
    Prefix,
    /// Longer than [`MAX_TOKEN_BYTES`], not base64url, or not the message: cut or mistyped.
    #[error("the join token is damaged")]
    Damaged,
    /// A key inside is none, or does not belong to the delegation.
    #[error("the join token's key: {0}")]
    Key(#[from] KeyError),
    /// The token key is not the one that the delegation names.
    #[error("the join token's key is not the delegated one")]
    OtherKey,
    /// The delegation inside does not hold.
    #[error("the join token's delegation: {0}")]
    Delegation(#[from] MemberError),
    /// Nothing to talk to.
    #[error("the join token has no {0}")]
    Missing(&'static str),
    /// An address that is none.
    #[error("the join token's address {0:?} is not of the form host:port")]
    Address(String),
}

/// What an operator delegates.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The federation.
    pub federation: FederationDomain,
    /// The cluster that may join.
    pub cluster: ClusterName,
    /// Namespaces it may export from.
    pub namespaces: NamespaceSet,
    /// Where its gateways may lie; empty: anywhere but in reserved ranges.
    pub address_ranges: Vec<IpNet>,
    /// Host names that its gateways may have, exact or `*.suffix`; empty: any.
    pub host_names: Vec<String>,
    /// DER certificates of the federation's authority.
    pub federation_roots: Vec<Vec<u8>>,
    /// `host:port` of each trust-bundle.
    pub trust_bundle_addresses: Vec<String>,
    /// `host:port` of each federator.
    pub federator_addresses: Vec<String>,
    /// Now: the membership's generation.
    pub created: SystemTime,
    /// How long it can be used; see [`DEFAULT_LIFETIME`].
    pub lifetime: Duration,
}

/// A token that holds together: the root it carries signed the delegation, and its key is the delegated one. Its
/// [`Display`](fmt::Display) is the secret text; its `Debug` is not.
pub struct JoinToken {
    message: wire::JoinToken,
    delegation: VerifiedDelegation,
    key: TokenKey,
    root: PublicKey,
}

impl JoinToken {
    /// Makes a token: the operator's side, offline.
    ///
    /// # Errors
    /// [`TokenError`] when the request is none that a receiver would accept.
    pub fn create(root: &MembershipRoot, request: TokenRequest) -> Result<Self, TokenError> {
        let key = TokenKey::generate()?;
        let namespaces = match &request.namespaces {
            NamespaceSet::All => vec!["*".to_owned()],
            NamespaceSet::Some(namespaces) => namespaces.iter().map(ToString::to_string).collect(),
        };
        let created = unix::milliseconds(request.created);
        let lifetime = i64::try_from(request.lifetime.as_millis()).unwrap_or(i64::MAX);
        let delegation = root.delegate(&wire::Delegation {
            federation: request.federation.to_string(),
            cluster: request.cluster.to_string(),
            token_public_key: key.public().as_bytes().to_vec(),
            expires_at_ms: created.saturating_add(lifetime),
            generation: u64::try_from(created).unwrap_or(0),
            namespaces,
            address_ranges: request.address_ranges.iter().map(ToString::to_string).collect(),
            host_names: request.host_names,
        });
        Self::parse(wire::JoinToken {
            delegation: Some(delegation),
            token_key: key.seed()?,
            membership_root: root.public().as_bytes().to_vec(),
            federation_roots: request.federation_roots,
            trust_bundle_addresses: request.trust_bundle_addresses,
            federator_addresses: request.federator_addresses,
        })
    }

    fn parse(message: wire::JoinToken) -> Result<Self, TokenError> {
        let root = PublicKey::from_bytes(&message.membership_root)?;
        let signed = message.delegation.as_ref().ok_or(TokenError::Missing("delegation"))?;
        let delegation = verify_delegation(&root, signed)?;
        let key = TokenKey::from_seed(&message.token_key)?;
        if key.public() != delegation.token {
            return Err(TokenError::OtherKey);
        }
        if message.federation_roots.is_empty() {
            return Err(TokenError::Missing("federation root"));
        }
        if message.trust_bundle_addresses.is_empty() {
            return Err(TokenError::Missing("trust-bundle address"));
        }
        if message.federator_addresses.is_empty() {
            return Err(TokenError::Missing("federator address"));
        }
        let mut addresses = message.trust_bundle_addresses.iter().chain(&message.federator_addresses);
        if let Some(wrong) = addresses.find(|address| !is_host_and_port(address)) {
            return Err(TokenError::Address(wrong.clone()));
        }
        Ok(Self { message, delegation, key, root })
    }

    /// The federation.
    #[must_use]
    pub fn federation(&self) -> &FederationDomain {
        &self.delegation.federation
    }

    /// The cluster that may join with it.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.delegation.cluster
    }

    /// The membership's generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.delegation.generation
    }

    /// When it can no longer be used.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.delegation.expires
    }

    /// The membership root's public half, which the member pins.
    #[must_use]
    pub fn membership_root(&self) -> PublicKey {
        self.root
    }

    /// The token's public key: names the token without revealing it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.delegation.token
    }

    /// What operators call the token: [`id_of`] its public key.
    #[must_use]
    pub fn id(&self) -> String {
        id_of(&self.delegation.token)
    }

    /// The delegation inside, as the membership root signed it: without the token's key it is no token.
    #[must_use]
    pub fn signed_delegation(&self) -> Option<&Signed> {
        self.message.delegation.as_ref()
    }

    /// DER certificates of the federation's authority.
    #[must_use]
    pub fn federation_roots(&self) -> &[Vec<u8>] {
        &self.message.federation_roots
    }

    /// `host:port` of each trust-bundle.
    #[must_use]
    pub fn trust_bundle_addresses(&self) -> &[String] {
        &self.message.trust_bundle_addresses
    }

    /// `host:port` of each federator.
    #[must_use]
    pub fn federator_addresses(&self) -> &[String] {
        &self.message.federator_addresses
    }

    /// The membership that this token makes of a publish key: the delegation and the first grant.
    #[must_use]
    pub fn member(&self, publish_key: &PublicKey, joined: SystemTime) -> Member {
        let grant = self.key.grant(&wire::PublishKeyGrant {
            federation: self.delegation.federation.to_string(),
            cluster: self.delegation.cluster.to_string(),
            generation: self.delegation.generation,
            publish_public_key: publish_key.as_bytes().to_vec(),
            joined_at_ms: unix::milliseconds(joined),
            after_sequence: 0,
        });
        Member { delegation: self.message.delegation.clone(), grants: vec![grant] }
    }
}

/// Names a token by its public key: the first 16 hexadecimal digits of the key's SHA-256.
#[must_use]
pub fn id_of(token: &PublicKey) -> String {
    digest(&SHA256, token.as_bytes()).as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The grant that replaces a publish key by another one, for statements above `after_sequence`. To be appended to the
/// member's grants.
#[must_use]
pub fn rotate(
    current: &PublishKey,
    member: &crate::verify::VerifiedMember,
    next: &PublicKey,
    after_sequence: u64,
) -> Signed {
    current.grant(&wire::PublishKeyGrant {
        federation: member.federation().to_string(),
        cluster: member.cluster().to_string(),
        generation: member.generation(),
        publish_public_key: next.as_bytes().to_vec(),
        joined_at_ms: unix::milliseconds(member.joined()),
        after_sequence,
    })
}

impl fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.message.encode_to_vec();
        bytes.extend(checksum(&bytes));
        write!(formatter, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("JoinToken")
            .field("federation", self.federation())
            .field("cluster", self.cluster())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if body.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let (message, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Damaged)?;
        if checksum(message) != *sum {
            return Err(TokenError::Damaged);
        }
        Self::parse(wire::JoinToken::decode(message).map_err(|_| TokenError::Damaged)?)
    }
}

fn is_host_and_port(text: &str) -> bool {
    let named = |host: &str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic());
    text.rsplit_once(':').is_some_and(|(host, port)| named(host) && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// The first bytes of the message's SHA-256. It guards against slips of the hand, so that a damaged token is refused
/// before it is used up: the signature covers the delegation alone, not the addresses and pins beside it.
fn checksum(message: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&digest(&SHA256, message).as_ref()[..CHECKSUM_BYTES]);
    sum
}
