//! Who a member is, and whether a record is really its own word.
//!
//! Always bytes first: nothing of a message is decoded before its signature held.

mod chain;

use std::time::SystemTime;

use federation::delegation::{Delegation, Overreach};
use federation::record::RecordKeyError;
use federation::{ClusterName, FederationDomain, RecordKey};
use prost::Message as _;

use crate::convert::{ConvertError, shown};
use crate::payload::Payload;
use crate::record::v1::{self as wire, Signed};
use crate::signing::{KeyError, PublicKey, Purpose};
use crate::unix;

pub use crate::deny_list::{DenyList, DenyListError, NoSuccessor, verify_deny_list};
pub use chain::verify_member;
pub use chain::{VerifiedDelegation, verify_delegation};

/// Key rotations of one membership; a new token starts again.
pub const MAX_GRANTS: usize = 64;
/// Entries of one list in a delegation.
pub const MAX_DELEGATED: usize = 1_000;
/// The largest record that is looked at.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// Why a membership is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// A part is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Not signed by the key that the chain asks for.
    #[error("the signature of {0} does not hold")]
    Signature(&'static str),
    /// Signed, but not decodable.
    #[error("{0} cannot be decoded")]
    Decode(&'static str),
    /// Of another federation.
    #[error("{part} is of federation {found}")]
    Federation {
        /// Which part of the chain.
        part: &'static str,
        /// The one it names.
        found: String,
    },
    /// A grant of another cluster or generation than the delegation's.
    #[error("grant {0} is of another cluster or generation than the delegation")]
    Grant(usize),
    /// `after_sequence` is not 0 in the first grant, or does not grow.
    #[error("grant {0}: after_sequence does not follow the grant before")]
    AfterSequence(usize),
    /// A value that is none.
    #[error(transparent)]
    Field(#[from] ConvertError),
    /// A key that is none.
    #[error("{part}: {source}")]
    Key {
        /// Which part of the chain.
        part: &'static str,
        /// What is wrong.
        source: KeyError,
    },
    /// The token was used too late.
    #[error("the token has expired")]
    Expired,
}

/// Why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Larger than [`MAX_RECORD_BYTES`].
    #[error("the record has {0} bytes, allowed are {MAX_RECORD_BYTES}")]
    Size(usize),
    /// Not signed by a publish key of the member.
    #[error("the record's signature does not hold")]
    Signature,
    /// Signed, but no statement.
    #[error("the record cannot be decoded")]
    Decode,
    /// Of another federation.
    #[error("federation: the record is of {0}")]
    Federation(String),
    /// About another cluster.
    #[error("cluster: the record is of {0}")]
    Cluster(String),
    /// Of an older or later membership.
    #[error("generation: the record is of {found}, the member's is {expected}")]
    Generation {
        /// The record's.
        found: u64,
        /// The member's.
        expected: u64,
    },
    /// The sequence is outside of what the signing key may use.
    #[error("sequence: {0} is not for the key that signed it")]
    Sequence(u64),
    /// The key is none, or of a later version.
    #[error("key: {0}")]
    Key(#[from] RecordKeyError),
    /// The payload is not of the key's kind, or about another object.
    #[error("key: {key} cannot carry this {payload}")]
    Disagreement {
        /// The record's key.
        key: RecordKey,
        /// The payload's kind.
        payload: &'static str,
    },
    /// A value in the payload that is none.
    #[error(transparent)]
    Field(#[from] ConvertError),
    /// More than was delegated.
    #[error(transparent)]
    NotDelegated(#[from] Overreach),
    /// A bundle of another trust domain than the cluster's own.
    #[error("bundle.trust_domain: {0} is not the cluster's own")]
    TrustDomain(String),
}

/// One publish key, and the sequences it may use: above `after`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    key: PublicKey,
    after: u64,
}

/// A membership whose whole chain was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedMember {
    federation: FederationDomain,
    cluster: ClusterName,
    generation: u64,
    delegation: Delegation,
    token: PublicKey,
    expires: SystemTime,
    grants: Vec<Grant>,
}

/// A record that its cluster really made, parsed and held to its delegation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedStatement {
    /// The cluster that speaks.
    pub cluster: ClusterName,
    /// Its membership.
    pub generation: u64,
    /// The order of its statements.
    pub sequence: u64,
    /// What it is about.
    pub key: RecordKey,
    /// When the cluster says it made it.
    pub issued: SystemTime,
    /// The value.
    pub payload: Payload,
    /// Parts of the value that were dropped since they are outside of the delegation.
    pub refused: Vec<Overreach>,
    /// The envelope, to be relayed or stored as it is.
    pub signed: Signed,
}

impl VerifiedMember {
    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Its federation.
    #[must_use]
    pub fn federation(&self) -> &FederationDomain {
        &self.federation
    }

    /// A higher one replaces this membership.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What it may say.
    #[must_use]
    pub fn delegation(&self) -> &Delegation {
        &self.delegation
    }

    /// When it joined.
    #[must_use]
    pub fn joined(&self) -> SystemTime {
        self.delegation.joined
    }

    /// The key of the token it joined with: names a token without revealing it.
    #[must_use]
    pub fn token(&self) -> &PublicKey {
        &self.token
    }

    /// When the token could no longer be used.
    #[must_use]
    pub fn token_expires(&self) -> SystemTime {
        self.expires
    }

    /// How many publish keys it has had.
    #[must_use]
    pub fn publish_keys(&self) -> usize {
        self.grants.len()
    }

    /// Whether this is news to somebody who has the other one: a later membership, or the same after a key rotation. What
    /// does not supersede is an old word said again, or another word in the place of one that was said: by these a captured
    /// service would bring a replaced key back, or one that whoever holds a used token or a replaced key has granted since.
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        self.generation > other.generation || (self.continues(other) && self.grants.len() > other.grants.len())
    }

    /// Whether this is the other membership with the same publish keys, or further ones behind them.
    fn continues(&self, other: &Self) -> bool {
        let same =
            (self.generation, &self.token, &self.delegation) == (other.generation, &other.token, &other.delegation);
        same && self.grants.starts_with(&other.grants)
    }

    /// Verifies a record, parses it and holds it to the delegation.
    ///
    /// # Errors
    /// [`RecordError`] says what does not hold; nothing of the record is believed then.
    pub fn verify(&self, signed: &Signed) -> Result<VerifiedStatement, RecordError> {
        if signed.message.len() > MAX_RECORD_BYTES {
            return Err(RecordError::Size(signed.message.len()));
        }
        let (after, until) = self.signer(signed).ok_or(RecordError::Signature)?;
        let statement = wire::Statement::decode(signed.message.as_ref()).map_err(|_| RecordError::Decode)?;
        if statement.federation != self.federation.as_str() {
            return Err(RecordError::Federation(shown(&statement.federation)));
        }
        if statement.cluster != self.cluster.as_str() {
            return Err(RecordError::Cluster(shown(&statement.cluster)));
        }
        if statement.generation != self.generation {
            return Err(RecordError::Generation { found: statement.generation, expected: self.generation });
        }
        if statement.sequence <= after || statement.sequence > until {
            return Err(RecordError::Sequence(statement.sequence));
        }
        let key: RecordKey = statement.key.parse()?;
        let payload = Payload::from_wire(statement.payload)?;
        if !payload.agrees_with(&key) {
            return Err(RecordError::Disagreement { key, payload: payload.kind() });
        }
        let (payload, refused) = self.clamp(&key, payload)?;
        Ok(VerifiedStatement {
            cluster: self.cluster.clone(),
            generation: statement.generation,
            sequence: statement.sequence,
            key,
            issued: unix::from_milliseconds(statement.issued_at_ms),
            payload,
            refused,
            signed: signed.clone(),
        })
    }

    /// Verifies that the member itself ended this membership: the whole answer to who may forget it.
    ///
    /// # Errors
    /// [`RecordError`]; the membership stands then.
    pub fn verify_departure(&self, signed: &Signed) -> Result<VerifiedStatement, RecordError> {
        let statement = self.verify(signed)?;
        // The key allows no other payload than the withdrawal.
        match statement.key {
            RecordKey::Membership => Ok(statement),
            key => Err(RecordError::Disagreement { key, payload: "departure" }),
        }
    }

    /// The sequences that the key which signed the record may use: above the first, up to the second. A key that was
    /// replaced speaks no longer.
    fn signer(&self, signed: &Signed) -> Option<(u64, u64)> {
        let mut until = u64::MAX;
        for grant in self.grants.iter().rev() {
            if grant.key.verifies(Purpose::Record, signed) {
                return Some((grant.after, until));
            }
            until = grant.after;
        }
        None
    }

    fn clamp(&self, key: &RecordKey, payload: Payload) -> Result<(Payload, Vec<Overreach>), RecordError> {
        if let Some(namespace) = key.namespace()
            && !self.delegation.allows_namespace(namespace)
        {
            return Err(Overreach::Namespace(namespace.clone()).into());
        }
        Ok(match payload {
            Payload::Export(export) => (Payload::Export(Box::new(self.delegation.clamp_export(*export)?)), Vec::new()),
            Payload::Gateways(gateways) => {
                let (gateways, refused) = self.delegation.clamp_gateways(gateways);
                (Payload::Gateways(gateways), refused)
            }
            Payload::Bundle { trust_domain, .. } if trust_domain != self.federation.trust_domain(&self.cluster) => {
                return Err(RecordError::TrustDomain(shown(&trust_domain)));
            }
            Payload::Slice(_) | Payload::Bundle { .. } | Payload::Heads(_) | Payload::Withdrawal | Payload::Unknown => {
                (payload, Vec::new())
            }
        })
    }
}
