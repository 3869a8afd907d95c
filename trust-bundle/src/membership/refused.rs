//! Why a join or a bundle is refused, and what the caller is told.

use federation::ClusterName;
use federation_api::verify::{MemberError, RecordError};
use federation_store::StoreError;
use spiffe_identity::TrustDomain;
use tonic::{Code, Status};
use tracing::error;

use crate::standing::ShutOut;
use crate::verify::VerifyError;

/// Why a join or a bundle was refused.
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
    /// The operator shut the cluster out, or it never was a member.
    #[error(transparent)]
    ShutOut(#[from] ShutOut),
    /// The store failed; whether something has changed is not known.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl Refused {
    /// Tells a forgery from a token that is void and from a mistake in the form.
    pub(super) fn unverified(field: &'static str, error: VerifyError) -> Self {
        match error {
            VerifyError::Member(error @ (MemberError::Expired | MemberError::Federation { .. })) => {
                Self::TokenVoid(error)
            }
            VerifyError::Member(MemberError::Signature(_) | MemberError::Grant(_) | MemberError::AfterSequence(_))
            | VerifyError::Record(RecordError::Signature) => Self::Unverified { field, source: error },
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
            | Refused::OldGeneration { .. }
            | Refused::StaleBundle { .. } => Code::FailedPrecondition,
            Refused::ShutOut(_) => Code::PermissionDenied,
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
        Self::permission_denied(shut_out.to_string())
    }
}
