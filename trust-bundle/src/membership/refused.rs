//! Why a change of the members is refused, and what the caller is told.

use federation::ClusterName;
use federation_api::verify::{DenyListError, MemberError, RecordError};
use federation_store::StoreError;
use spiffe_identity::TrustDomain;
use tonic::{Code, Status};
use tracing::error;

use crate::standing::ShutOut;
use crate::verify::VerifyError;

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A signature or the chain does not hold.
    #[error("{field}: {source}")]
    Unverified {
        /// Whose.
        field: &'static str,
        /// What does not hold.
        source: VerifyError,
    },
    /// What was sent is not what the call takes.
    #[error("{field}: {reason}")]
    Malformed {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The token came too late, or is of another federation.
    #[error("{0}: ask the operator for a new one")]
    TokenVoid(MemberError),
    /// The token was used before.
    #[error("the token of cluster {0} was used already: ask the operator for a new one")]
    TokenUsed(ClusterName),
    /// The operator revoked the token.
    #[error("token {0} was revoked: ask the operator for a new one")]
    TokenRevoked(String),
    /// The token was used, so there is nothing left to revoke.
    #[error("token {0} was used already: evict its cluster to end the membership")]
    TokenSpent(String),
    /// No more tokens can be known.
    #[error("{0} tokens are known already; those that ended are forgotten after 30 days")]
    TooManyTokens(usize),
    /// The deny-list is not newer than the one in force.
    #[error("the deny-list has epoch {offered}, the one in force has {current}")]
    OldDenyList {
        /// The epoch in force.
        current: u64,
        /// The epoch that was put.
        offered: u64,
    },
    /// The membership does not follow the one that stands.
    #[error("cluster {cluster}: {offered} does not follow {current}")]
    StaleMember {
        /// The cluster.
        cluster: ClusterName,
        /// What was put.
        offered: String,
        /// What stands.
        current: String,
    },
    /// A membership of the same or a higher generation exists.
    #[error(
        "cluster {cluster} has a membership of generation {current}, the token's is {offered}: ask the operator for a new one"
    )]
    OldGeneration {
        /// The cluster.
        cluster: ClusterName,
        /// The generation of the membership that stands.
        current: u64,
        /// The generation of the token.
        offered: u64,
    },
    /// A newer bundle is stored.
    #[error("bundle of {trust_domain}: {reason}")]
    StaleBundle {
        /// Whose.
        trust_domain: TrustDomain,
        /// Which number did not grow.
        reason: String,
    },
    /// A root that another trust domain has already.
    #[error("bundle of {trust_domain}: it holds a root's key of {owner}: every cluster needs a root of its own")]
    SharedKey {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// Who has it.
        owner: TrustDomain,
    },
    /// The operator shut the cluster out, or it never was a member.
    #[error(transparent)]
    ShutOut(#[from] ShutOut),
    /// The store failed; whether something has changed is not known.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl Refused {
    /// Tells a forgery from a token that is void and from a mistake in the form.
    pub(crate) fn unverified(field: &'static str, error: VerifyError) -> Self {
        match error {
            VerifyError::Member(error @ (MemberError::Expired | MemberError::Federation { .. })) => {
                Self::TokenVoid(error)
            }
            VerifyError::Member(MemberError::Signature(_) | MemberError::Grant(_) | MemberError::AfterSequence(_))
            | VerifyError::Record(RecordError::Signature)
            | VerifyError::DenyList(DenyListError::Signature) => Self::Unverified { field, source: error },
            error => Self::Malformed { field, reason: error.to_string() },
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match &refused {
            Refused::Unverified { .. } => Code::Unauthenticated,
            Refused::Malformed { .. } => Code::InvalidArgument,
            Refused::TokenVoid(_)
            | Refused::TokenUsed(_)
            | Refused::TokenRevoked(_)
            | Refused::TokenSpent(_)
            | Refused::OldDenyList { .. }
            | Refused::StaleMember { .. }
            | Refused::OldGeneration { .. }
            | Refused::StaleBundle { .. }
            | Refused::SharedKey { .. } => Code::FailedPrecondition,
            Refused::TooManyTokens(_) => Code::ResourceExhausted,
            Refused::ShutOut(shut_out) => return shut_out.clone().into(),
            Refused::Store(source) => {
                // What lies behind it is not the caller's to know.
                error!(error = source as &dyn std::error::Error, "the store failed");
                Code::Unavailable
            }
        };
        Self::new(code, refused.to_string())
    }
}

impl From<ShutOut> for Status {
    fn from(shut_out: ShutOut) -> Self {
        match shut_out {
            // Another replica may know it, and this one will.
            ShutOut::Unknown { .. } => Self::unavailable(shut_out.to_string()),
            _ => Self::permission_denied(shut_out.to_string()),
        }
    }
}
