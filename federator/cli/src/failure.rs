//! How a command can fail, in one line that names what and where, and with which exit code.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Answered, but not with good news.
pub(crate) const EXIT_BAD_NEWS: u8 = 3;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The arguments do not go together.
    #[error("{0}")]
    Usage(String),
    /// Nothing listens at the admin socket, or not for this user.
    #[error("no control-plane answers at {}: {} ({source})", socket.display(), hint(source))]
    NoControlPlane { socket: PathBuf, source: std::io::Error },
    /// Something listens at the admin socket, but does not talk as it should.
    #[error("control-plane at {}: {what}: {reason}", socket.display())]
    Conversation { socket: PathBuf, what: String, reason: String },
    /// The control-plane says no.
    #[error("control-plane refuses {what}: {reason}")]
    Refused { what: String, status: http::StatusCode, reason: String },
    /// The effect did not come in time.
    #[error("{what}: not done after {}: {last}", crate::time::brief(*after))]
    Deadline { what: String, after: Duration, last: String },
    /// A file cannot be used.
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// No sidecar answers there.
    #[error("no sidecar answers at {address}: {source} (is it running? set --sidecar or ISTHMUS_SIDECAR)")]
    NoSidecar { address: String, source: std::io::Error },
    /// What answers there does not talk as a sidecar should.
    #[error("sidecar at {address}: {reason}")]
    Sidecar { address: String, reason: String },
    /// No federator answers there.
    #[error("no federator answers at {address}: {source} (the admin address of a replica, `runtime.admin`, is meant)")]
    NoFederator { address: String, source: std::io::Error },
    /// What answers there does not talk as a federator should.
    #[error("federator at {address}: {reason}")]
    Federator { address: String, reason: String },
    /// No replica of the trust-bundle answers.
    #[error("no trust-bundle answers at {addresses}: {reason}")]
    NoTrustBundle { addresses: String, reason: String },
    /// The trust-bundle says no, or what cannot be believed.
    #[error("trust-bundle: {reason}")]
    RefusedByTrustBundle { reason: String },
    /// In force, but not everywhere yet.
    #[error("{what}: in force, but not acknowledged by {}", pending.join(", "))]
    Unacknowledged { what: String, pending: Vec<String> },
    /// A token cannot be made, or is none.
    #[error("join token: {0}")]
    Token(#[from] federation_api::token::TokenError),
    /// An export that the control-plane or the federation does not accept.
    #[error("export {service}: {reason}")]
    Export { service: federation::ServiceId, reason: String },
    /// A key was not replaced.
    #[error("rotate {key}: {problem}")]
    Rotation { key: String, problem: String },
    /// No DNS server answered.
    #[error("dig {name}: {reason}")]
    Dns { name: String, reason: String },
    /// Standard output or input broke.
    #[error("{what}: {source}")]
    Stream { what: &'static str, source: std::io::Error },
}

impl Failure {
    /// The exit code, as `isthmus --help` lists them.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::NoControlPlane { .. }
            | Self::NoTrustBundle { .. }
            | Self::NoSidecar { .. }
            | Self::NoFederator { .. } => 4,
            Self::Deadline { .. } | Self::Unacknowledged { .. } => 5,
            _ => 1,
        })
    }
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "only its own user may open the socket",
        _ => "is it running? set --admin or ISTHMUS_ADMIN",
    }
}
