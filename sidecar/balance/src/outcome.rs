//! How one attempt ended, as the balancer sees it.

/// How an attempt at a member ended.
///
/// The caller maps its protocol to these: for gRPC, status `UNAVAILABLE` is [`Outcome::GatewayError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An answer as it should be.
    Success,
    /// An answer that speaks of the request rather than of the endpoint's health (500, 404, 429). It shows that the
    /// endpoint lives, but its latency does not make the endpoint look faster: an instance that fails quickly must not
    /// attract more requests.
    OtherResponse,
    /// No connection: refused, unreachable, given up waiting, or overtaken by an attempt that was raced against it
    /// because it took too long. Report it at that moment; the sooner, the sooner traffic moves.
    ConnectFailure,
    /// The TLS handshake failed, or the peer was not who it should be.
    TlsFailure,
    /// The connection or stream ended before any response.
    ResetBeforeResponse,
    /// Status 502, 503 or 504.
    GatewayError,
    /// The caller gave up for reasons of its own (the application hung up, another attempt won the race): no verdict.
    Abandoned,
}

/// What an outcome says about health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Healthy,
    /// The transport failed: who stands behind a gateway is unknown.
    TransportFailure,
    /// The endpoint answered that it, or what it needs, is failing. The gateway in between did its work.
    ResponseFailure,
    None,
}

impl Outcome {
    pub(crate) const fn verdict(self) -> Verdict {
        match self {
            Self::Success | Self::OtherResponse => Verdict::Healthy,
            Self::ConnectFailure | Self::TlsFailure | Self::ResetBeforeResponse => Verdict::TransportFailure,
            Self::GatewayError => Verdict::ResponseFailure,
            Self::Abandoned => Verdict::None,
        }
    }
}
