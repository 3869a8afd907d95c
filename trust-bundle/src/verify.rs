//! What everything here is verified under: the federation's name and its membership root.

use std::time::SystemTime;

use bytes::Bytes;
use federation::{ClusterName, FederationDomain, RecordKey};
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, Signed};
use federation_api::signing::PublicKey;
use federation_api::trust::v1::StoredDeparture;
use federation_api::verify::{
    DenyList, DenyListError, MemberError, RecordError, VerifiedDelegation, VerifiedMember, verify_delegation,
    verify_deny_list, verify_member,
};
use prost::Message;
use spiffe_identity::{Bundle, BundleError, TrustDomain, TrustDomainError};

/// The largest bundle record that is taken: sixteen roots with RSA keys fit. Every watcher gets every cluster's, so no
/// cluster may fill the whole message.
pub const MAX_BUNDLE_RECORD_BYTES: usize = 64 * 1024;

/// Why a record is not believed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Not the message that belongs here.
    #[error("cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    /// No membership under this root.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// Not the member's own word.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The member's own word, about something else.
    #[error("the record is about \"{0}\" and has no bundle")]
    NotABundle(RecordKey),
    /// Larger than [`MAX_BUNDLE_RECORD_BYTES`].
    #[error("the record has {0} bytes, allowed are {MAX_BUNDLE_RECORD_BYTES}")]
    TooLarge(usize),
    /// The cluster's name makes no trust domain in this federation.
    #[error(transparent)]
    TrustDomain(#[from] TrustDomainError),
    /// Not a SPIFFE bundle.
    #[error(transparent)]
    Jwks(#[from] BundleError),
    /// No deny-list under this root.
    #[error(transparent)]
    DenyList(#[from] DenyListError),
}

/// Verifies what was sent, and what was stored.
#[derive(Debug, Clone)]
pub struct Verifier {
    federation: FederationDomain,
    root: PublicKey,
}

/// A member's bundle with its place among that member's bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBundle {
    /// The membership that said it.
    pub generation: u64,
    /// The record's place in the member's statements.
    pub sequence: u64,
    /// The roots, and SPIFFE's own sequence.
    pub bundle: Bundle,
}

impl VerifiedBundle {
    /// Whether this is said later than the other one.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.generation, self.sequence) > (other.generation, other.sequence)
    }
}

impl Verifier {
    /// Verifies under `root`, for `federation` alone.
    #[must_use]
    pub fn new(federation: FederationDomain, root: PublicKey) -> Self {
        Self { federation, root }
    }

    /// The member that a trust domain belongs to, if it is one of this federation.
    #[must_use]
    pub fn cluster_of(&self, trust_domain: &str) -> Option<ClusterName> {
        self.federation.cluster_of(trust_domain)
    }

    /// A membership; `joining` is the time at which its token must still be good, where it is made.
    ///
    /// # Errors
    /// [`VerifyError::Member`]
    pub fn member(&self, member: &Member, joining: Option<SystemTime>) -> Result<VerifiedMember, VerifyError> {
        Ok(verify_member(&self.root, &self.federation, member, joining)?)
    }

    /// The delegation of a token.
    ///
    /// # Errors
    /// [`VerifyError::Member`]
    pub fn delegation(&self, signed: &Signed) -> Result<VerifiedDelegation, VerifyError> {
        let delegation = verify_delegation(&self.root, signed)?;
        if delegation.federation != self.federation {
            let found = delegation.federation.to_string();
            return Err(MemberError::Federation { part: "delegation", found }.into());
        }
        Ok(delegation)
    }

    /// A departure as it is stored, with the membership that ended.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn stored_departure(&self, value: &Bytes) -> Result<(Signed, VerifiedMember), VerifyError> {
        let StoredDeparture { member, statement } = StoredDeparture::decode(value.clone())?;
        let member = self.member(&member.unwrap_or_default(), None)?;
        let statement = statement.unwrap_or_default();
        member.verify_departure(&statement)?;
        Ok((statement, member))
    }

    /// The bundle of a member's own trust domain, in its own word.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn bundle(&self, member: &VerifiedMember, signed: &Signed) -> Result<VerifiedBundle, VerifyError> {
        if signed.message.len() > MAX_BUNDLE_RECORD_BYTES {
            return Err(VerifyError::TooLarge(signed.message.len()));
        }
        // This holds the trust domain to be the cluster's own.
        let statement = member.verify(signed)?;
        let Payload::Bundle { trust_domain, jwks } = &statement.payload else {
            return Err(VerifyError::NotABundle(statement.key));
        };
        let trust_domain: TrustDomain = trust_domain.parse()?;
        let bundle = Bundle::from_jwks(trust_domain, jwks)?;
        Ok(VerifiedBundle { generation: statement.generation, sequence: statement.sequence, bundle })
    }

    /// The operator's deny-list.
    ///
    /// # Errors
    /// [`VerifyError::DenyList`]
    pub fn deny_list(&self, signed: &Signed) -> Result<DenyList, VerifyError> {
        Ok(verify_deny_list(&self.root, &self.federation, signed)?)
    }

    /// A membership as it is stored.
    ///
    /// # Errors
    /// [`VerifyError::Decode`], [`VerifyError::Member`]
    pub fn stored_member(&self, value: &Bytes) -> Result<(Member, VerifiedMember), VerifyError> {
        let member = Member::decode(value.clone())?;
        let verified = self.member(&member, None)?;
        Ok((member, verified))
    }

    /// A bundle record as it is stored.
    ///
    /// # Errors
    /// [`VerifyError`]
    pub fn stored_bundle(
        &self,
        member: &VerifiedMember,
        value: &Bytes,
    ) -> Result<(Signed, VerifiedBundle), VerifyError> {
        let signed = Signed::decode(value.clone())?;
        let verified = self.bundle(member, &signed)?;
        Ok((signed, verified))
    }

    /// A deny-list as it is stored.
    ///
    /// # Errors
    /// [`VerifyError::Decode`], [`VerifyError::DenyList`]
    pub fn stored_deny_list(&self, value: &Bytes) -> Result<(Signed, DenyList), VerifyError> {
        let signed = Signed::decode(value.clone())?;
        let list = self.deny_list(&signed)?;
        Ok((signed, list))
    }
}
