//! Who answered.

use std::sync::Arc;

use balance::EndpointId;
use spiffe_identity::SpiffeId;

/// The sidecar at the other end of a session, as it proved and named itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// From its certificate.
    pub(crate) identity: Arc<str>,
    /// From its verdict.
    pub(crate) endpoint: Option<EndpointId>,
    endpoint_text: Arc<str>,
}

impl Peer {
    /// A peer by its proven identity and the endpoint id that it named.
    pub(crate) fn new(identity: &SpiffeId, endpoint: &str) -> Self {
        let endpoint = EndpointId::new(endpoint).ok();
        let endpoint_text = endpoint.as_ref().map_or("-", EndpointId::as_str).into();
        Self { identity: identity.to_string().into(), endpoint, endpoint_text }
    }

    /// An endpoint without a sidecar: it proves nothing.
    pub(crate) fn plain(endpoint: &str) -> Self {
        let endpoint_id = EndpointId::new(endpoint).ok();
        Self { identity: "-".into(), endpoint: endpoint_id, endpoint_text: endpoint.into() }
    }

    /// Its endpoint id for a person.
    pub(crate) fn endpoint_text(&self) -> &Arc<str> {
        &self.endpoint_text
    }
}
