//! Who asks for an SVID: a port that the control-plane implements, over TokenReview or over signed token files.

use std::future::Future;

/// A workload whose token was believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its pod's name, when the token is bound to one.
    pub pod: Option<String>,
}

/// Why a token names no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The token is not genuine, expired, for another audience, or its pod is gone. Asking again does not help.
    #[error("the token is refused: {0}")]
    Refused(String),
    /// Nobody could be asked. Asking again may help.
    #[error("the token cannot be checked now: {0}")]
    Unavailable(String),
}

/// Turns a token into the workload that it stands for.
pub trait Attestor: Send + Sync {
    /// Checks a service-account token, its audience included.
    fn attest(&self, token: &str) -> impl Future<Output = Result<Workload, AttestError>> + Send;
}
