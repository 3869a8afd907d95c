//! Fetching and serving bundles over HTTPS (SPIFFE Federation), without doing either: what to ask, whom to believe, and what
//! to make of the answer. Whoever owns sockets carries it out.

mod answer;
mod fetch;
mod url;

use std::time::Duration;

pub use self::{
    answer::Answer,
    fetch::{FETCH_DEADLINE, Fetch, FetchError, Head, MAX_REDIRECTS, Next},
    url::{EndpointUrl, UrlError},
};
use crate::{Bundle, BundleSet, DEFAULT_REFRESH_HINT, SpiffeId, TrustDomain};

/// A trust domain's bundle endpoint. Trust domain, URL and profile are configured together and never inferred from each
/// other, nor from anything that is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    trust_domain: TrustDomain,
    url: EndpointUrl,
    profile: Profile,
}

/// How an endpoint proves that it is the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Profile {
    Web,
    Spiffe { id: SpiffeId, bootstrap: Box<Bundle> },
}

/// Whom a connection to an endpoint must reach. It holds for redirects as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server<'a> {
    /// Whoever the web's certificate authorities say the URL's host is.
    Web,
    /// This identity, with an X.509-SVID that these roots vouch for.
    Spiffe {
        /// The endpoint's identity.
        id: &'a SpiffeId,
        /// The newest bundle of the identity's trust domain.
        bundle: &'a Bundle,
    },
}

/// Why an endpoint's configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The endpoint's ID names a trust domain and no workload.
    #[error("the endpoint's ID {0} has no path, so it names no server")]
    NoPath(SpiffeId),
    /// The bootstrap bundle could not vouch for the endpoint.
    #[error("the bootstrap bundle is {found}'s, and the endpoint is of {expected}")]
    Bootstrap {
        /// The trust domain of the endpoint's ID.
        expected: TrustDomain,
        /// The trust domain of the bundle.
        found: TrustDomain,
    },
}

impl Endpoint {
    /// Profile `https_web`: the server is authenticated by its host name, as web servers are.
    pub fn https_web(trust_domain: TrustDomain, url: EndpointUrl) -> Self {
        Self { trust_domain, url, profile: Profile::Web }
    }

    /// Profile `https_spiffe`: the server is authenticated by its SPIFFE ID, at first with a bundle that the operator brings.
    /// The ID may be of another trust domain than the one whose bundle is served.
    ///
    /// # Errors
    /// When the ID names no server, or the bundle is not its trust domain's.
    pub fn https_spiffe(
        trust_domain: TrustDomain,
        url: EndpointUrl,
        id: SpiffeId,
        bootstrap: Bundle,
    ) -> Result<Self, EndpointError> {
        if id.path().is_empty() {
            return Err(EndpointError::NoPath(id));
        }
        if bootstrap.trust_domain != *id.trust_domain() {
            let (expected, found) = (id.trust_domain().clone(), bootstrap.trust_domain);
            return Err(EndpointError::Bootstrap { expected, found });
        }
        Ok(Self { trust_domain, url, profile: Profile::Spiffe { id, bootstrap: Box::new(bootstrap) } })
    }

    /// Whose bundle it serves.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where it is.
    pub fn url(&self) -> &EndpointUrl {
        &self.url
    }

    /// Whom the next connection must reach: a bundle that was fetched counts before the bootstrap bundle, even when it has no
    /// roots left.
    pub fn server<'a>(&'a self, held: &'a BundleSet) -> Server<'a> {
        match &self.profile {
            Profile::Web => Server::Web,
            Profile::Spiffe { id, bootstrap } => {
                Server::Spiffe { id, bundle: held.bundle(id.trust_domain()).unwrap_or(bootstrap) }
            }
        }
    }

    /// How long until the next fetch, after a good one and after a failed one alike: what the last good bundle says.
    pub fn refresh(&self, held: &BundleSet) -> Duration {
        held.bundle(&self.trust_domain).and_then(|bundle| bundle.refresh_hint).unwrap_or(DEFAULT_REFRESH_HINT)
    }
}
