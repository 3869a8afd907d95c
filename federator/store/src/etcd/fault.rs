//! What an etcd member's answer, or its silence, means for the one who asked.

use std::error::Error;

use etcd_client::Error as ClientError;
use tonic::{Code, Status};

use crate::{LeaseId, Revision, Source, StoreError, WatchError};

/// Why an attempt at a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Nothing was done: the member was not reached, or it refused before proposing anything.
    #[error("not taken up")]
    NotDone(#[source] Source),
    /// It may have been done, or be done later.
    #[error("no answer")]
    Unknown(#[source] Source),
    /// The quota is used up. The transaction that meets the limit first is applied all the same.
    #[error("the quota is used up")]
    NoSpace(#[source] Source),
    /// The revision asked for is compacted.
    #[error("compacted")]
    Compacted,
    /// The revision asked for is not reached.
    #[error("in the future")]
    FutureRevision,
    /// There is no such lease.
    #[error("no such lease")]
    LeaseNotFound,
    /// There is such a lease already.
    #[error("the lease exists")]
    LeaseExists,
    /// The answer is larger than this side takes.
    #[error("the answer is too large")]
    TooLarge(#[source] Source),
    /// It is refused, and will be again: a permission, a limit, a file.
    #[error("refused")]
    Refused(#[source] Source),
    /// Behind the endpoints is another history than the one this store was opened on.
    #[error("another history")]
    Replaced(#[source] Source),
}

/// The history was exchanged below a running program, by a restore.
#[derive(Debug, thiserror::Error)]
#[error("etcd was restored or replaced ({0}): start again to read the new history")]
pub(super) struct HistoryReplaced(pub(super) &'static str);

impl Fault {
    /// A bounded label.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Fault::NotDone(_) => "not_done",
            Fault::Unknown(_) => "unknown",
            Fault::NoSpace(_) => "no_space",
            Fault::Compacted => "compacted",
            Fault::FutureRevision => "future_revision",
            Fault::LeaseNotFound => "lease_not_found",
            Fault::LeaseExists => "lease_exists",
            Fault::TooLarge(_) => "too_large",
            Fault::Refused(_) => "refused",
            Fault::Replaced(_) => "replaced",
        }
    }

    /// Another member, or the same one in a moment, may answer.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Fault::NotDone(_) | Fault::Unknown(_))
    }

    /// The answer of a call that may be repeated; `lease` and `revision` are what it named.
    pub(super) fn into_store_error(self, lease: LeaseId, revision: Revision) -> StoreError {
        match self {
            Fault::NotDone(source) | Fault::Unknown(source) => StoreError::Unavailable(source),
            Fault::NoSpace(source) => StoreError::NoSpace(source),
            Fault::Compacted => StoreError::Compacted { oldest: revision },
            Fault::FutureRevision => StoreError::FutureRevision { current: revision },
            Fault::LeaseNotFound => StoreError::LeaseNotFound { lease },
            Fault::TooLarge(source) | Fault::Refused(source) | Fault::Replaced(source) => StoreError::Storage(source),
            fault @ Fault::LeaseExists => StoreError::Storage(Box::new(fault)),
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        fault.into_store_error(LeaseId::new(0), 0)
    }
}

/// What ends a watch; `None` for what another attempt may mend.
pub(super) fn watch_end(fault: Fault) -> Option<WatchError> {
    match fault {
        Fault::Refused(source) | Fault::Replaced(source) => Some(WatchError::Storage(source)),
        _ => None,
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        let ClientError::GRpcStatus(status) = &error else {
            return match error {
                ClientError::InvalidArgs(_) | ClientError::InvalidUri(_) | ClientError::IoError(_) => {
                    Fault::Refused(Box::new(error))
                }
                // How the client tells a keep-alive's refusal.
                ClientError::LeaseKeepAliveError(text) if text == "lease not found" => Fault::LeaseNotFound,
                error => Fault::Unknown(Box::new(error)),
            };
        };
        // etcd's texts are its contract: one code stands for several of them.
        let (code, text) = (status.code(), status.message());
        match (code, text) {
            _ if was_not_sent(status) => Fault::NotDone(Box::new(error)),
            (
                _,
                "etcdserver: no leader"
                | "etcdserver: too many requests"
                | "etcdserver: revision of auth store is old"
                | "etcdserver: rpc not supported for learner"
                | "raft proposal dropped",
            ) => Fault::NotDone(Box::new(error)),
            (_, "etcdserver: mvcc: database space exceeded") => Fault::NoSpace(Box::new(error)),
            (_, "etcdserver: mvcc: required revision has been compacted") => Fault::Compacted,
            (_, "etcdserver: mvcc: required revision is a future revision") => Fault::FutureRevision,
            (_, "etcdserver: requested lease not found") => Fault::LeaseNotFound,
            (_, "etcdserver: lease already exists") => Fault::LeaseExists,
            (Code::OutOfRange, _) => Fault::TooLarge(Box::new(error)),
            (Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented, _) => {
                Fault::Refused(Box::new(error))
            }
            _ => Fault::Unknown(Box::new(error)),
        }
    }
}

/// The connection was never made, so no request went over it.
fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: Code, text: &str) -> &'static str {
        Fault::from(ClientError::GRpcStatus(Status::new(code, text))).kind()
    }

    #[test]
    fn only_what_was_refused_before_it_was_proposed_counts_as_not_done() {
        for (code, text, expected) in [
            (Code::Unavailable, "etcdserver: no leader", "not_done"),
            (Code::Unknown, "raft proposal dropped", "not_done"),
            (Code::Unavailable, "etcdserver: request timed out", "unknown"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure", "unknown"),
            (Code::Unavailable, "etcdserver: leader changed", "unknown"),
            (Code::Unavailable, "transport error", "unknown"),
            (Code::Cancelled, "", "unknown"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "no_space"),
            (Code::ResourceExhausted, "etcdserver: too many requests", "not_done"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "compacted"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "future_revision"),
            (Code::OutOfRange, "Error, decoded message length too large", "too_large"),
            (Code::NotFound, "etcdserver: requested lease not found", "lease_not_found"),
            (Code::FailedPrecondition, "etcdserver: lease already exists", "lease_exists"),
            (Code::PermissionDenied, "etcdserver: permission denied", "refused"),
        ] {
            assert_eq!(kind(code, text), expected, "{code:?} {text}");
        }
    }
}
