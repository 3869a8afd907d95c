//! Why a connection ended: chosen where it ends, used for the log line and the metric's label.

use relay::{ClientHelloError, ReadHelloError, RelayEnd, Side, alert};

/// Why a connection was not passed on to any endpoint though its hello is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The hello names no server.
    NoServerName,
    /// The server name is not one of ours.
    UnknownName,
    /// The server name asks for another cluster: from outside a gateway leads into its own only.
    OtherCluster,
    /// From inside: the server name asks for no cluster. Only the client can choose one.
    NoCluster,
    /// From inside: the server name asks for the own cluster, whose endpoints are reached directly.
    OwnCluster,
    /// From inside: no such cluster is known, or none that can be reached.
    UnknownCluster,
    /// The service is not exported by this cluster, or does not exist: a stranger is not told which.
    NotExported,
    /// The service is exported, but not this port of it.
    PortNotExported,
    /// The service has as many connections as are allowed to one.
    ServiceFull,
    /// No endpoint of the service is ready.
    NoReadyEndpoint,
    /// None of the endpoints tried within the budget could be reached.
    Unreachable,
}

impl Refusal {
    /// The alert that tells the client.
    #[must_use]
    pub const fn alert(self) -> [u8; 7] {
        match self {
            Self::NoServerName => alert::MISSING_EXTENSION,
            Self::UnknownName
            | Self::OtherCluster
            | Self::NoCluster
            | Self::OwnCluster
            | Self::UnknownCluster
            | Self::NotExported
            | Self::PortNotExported => alert::UNRECOGNIZED_NAME,
            Self::ServiceFull | Self::NoReadyEndpoint | Self::Unreachable => alert::INTERNAL_ERROR,
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Passed on to an endpoint, until this.
    Relayed(RelayEnd),
    /// Answered with an alert instead of being passed on.
    Refused(Refusal),
    /// The client closed or reset before it had sent a byte: a probe.
    Probe,
    /// A trusted load balancer sent no PROXY protocol header, or a malformed one.
    ProxyHeader,
    /// Too many hellos of its source are awaited, as a load balancer's header shows.
    Shed,
    /// The client closed or reset within its hello.
    HelloCutOff,
    /// The hello did not arrive in time.
    HelloTooSlow,
    /// The first bytes were not TLS.
    NotTls,
    /// The hello went beyond the limit of bytes.
    HelloTooLarge,
    /// The hello was malformed.
    HelloMalformed,
    /// The drain's deadline came first.
    Drained,
    /// The process ended it in another way.
    Aborted,
}

impl CloseReason {
    /// Every value of [`label`](Self::label).
    pub(crate) const LABELS: [&'static str; 29] = [
        "closed",
        "client_reset",
        "endpoint_reset",
        "client_timed_out",
        "endpoint_timed_out",
        "client_failed",
        "endpoint_failed",
        "unfinished",
        "no_server_name",
        "unknown_name",
        "other_cluster",
        "no_cluster",
        "own_cluster",
        "unknown_cluster",
        "not_exported",
        "port_not_exported",
        "service_full",
        "no_ready_endpoint",
        "unreachable",
        "probe",
        "proxy_header",
        "shed",
        "hello_cut_off",
        "hello_too_slow",
        "not_tls",
        "hello_too_large",
        "hello_malformed",
        "drained",
        "aborted",
    ];

    /// What became of a hello that could not be read.
    #[must_use]
    pub const fn of_hello(error: &ReadHelloError) -> Self {
        match error {
            ReadHelloError::Refused(ClientHelloError::NotTls) => Self::NotTls,
            ReadHelloError::Refused(ClientHelloError::TooLarge { .. }) => Self::HelloTooLarge,
            ReadHelloError::Refused(_) => Self::HelloMalformed,
            ReadHelloError::TooSlow { .. } => Self::HelloTooSlow,
            ReadHelloError::Closed { received: 0 } => Self::Probe,
            _ => Self::HelloCutOff,
        }
    }

    /// A fixed word: the label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Relayed(end) => match end {
                RelayEnd::Closed => "closed",
                RelayEnd::Reset(Side::A) => "client_reset",
                RelayEnd::Reset(Side::B) => "endpoint_reset",
                RelayEnd::TimedOut(Side::A) => "client_timed_out",
                RelayEnd::TimedOut(Side::B) => "endpoint_timed_out",
                RelayEnd::Truncated(Side::A) | RelayEnd::Failed(Side::A, _) => "client_failed",
                RelayEnd::Truncated(Side::B) | RelayEnd::Failed(Side::B, _) => "endpoint_failed",
                _ => "unfinished",
            },
            Self::Refused(refusal) => match refusal {
                Refusal::NoServerName => "no_server_name",
                Refusal::UnknownName => "unknown_name",
                Refusal::OtherCluster => "other_cluster",
                Refusal::NoCluster => "no_cluster",
                Refusal::OwnCluster => "own_cluster",
                Refusal::UnknownCluster => "unknown_cluster",
                Refusal::NotExported => "not_exported",
                Refusal::PortNotExported => "port_not_exported",
                Refusal::ServiceFull => "service_full",
                Refusal::NoReadyEndpoint => "no_ready_endpoint",
                Refusal::Unreachable => "unreachable",
            },
            Self::Probe => "probe",
            Self::ProxyHeader => "proxy_header",
            Self::Shed => "shed",
            Self::HelloCutOff => "hello_cut_off",
            Self::HelloTooSlow => "hello_too_slow",
            Self::NotTls => "not_tls",
            Self::HelloTooLarge => "hello_too_large",
            Self::HelloMalformed => "hello_malformed",
            Self::Drained => "drained",
            Self::Aborted => "aborted",
        }
    }
}
