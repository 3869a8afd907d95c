//! Gateways' host names.
//!
//! Answers are kept for their TTL by the resolver, and the last one beyond it for as long as nobody answers: a dead name
//! server must not cut clusters apart.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use federation::GatewayAddress;
use hickory_resolver::TokioResolver;
use tokio::sync::OnceCell;

/// How long a name server may take.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(1);

/// Names whose last answers are kept.
const MAX_REMEMBERED: usize = 1024;

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The system's resolver configuration cannot be used.
    #[error("resolver configuration: {0}")]
    Configuration(String),
    /// No answer, and none remembered.
    #[error("{host}: {problem}")]
    Lookup {
        /// The name.
        host: String,
        /// Why.
        problem: String,
    },
    /// Answers that no gateway can have.
    #[error("{0} has no address that a gateway may have")]
    Forbidden(String),
}

/// Resolves gateways' names. Clones share what is known.
#[derive(Clone)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    /// Made when the first name comes: most meshes use addresses.
    resolver: OnceCell<TokioResolver>,
    last: Mutex<HashMap<String, Vec<IpAddr>>>,
    loopback_allowed: bool,
}

impl Resolver {
    /// `loopback_allowed`: this sidecar's own workload lives on loopback.
    pub(crate) fn new(loopback_allowed: bool) -> Self {
        let shared = Shared { resolver: OnceCell::new(), last: Mutex::default(), loopback_allowed };
        Self { shared: Arc::new(shared) }
    }

    /// The addresses to try, in order.
    pub(crate) async fn resolve(&self, address: &GatewayAddress, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        match address {
            GatewayAddress::Ip(address) => Ok(vec![SocketAddr::new(*address, port)]),
            GatewayAddress::Host(host) => {
                let addresses = self.lookup(host).await?;
                Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
            }
        }
    }

    async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let answer = match tokio::time::timeout(LOOKUP_DEADLINE, self.ask(host)).await {
            Ok(answer) => answer,
            Err(_) => Err(ResolveError::Lookup { host: host.to_owned(), problem: "no answer in time".to_owned() }),
        };
        let mut last = self.shared.last.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(addresses) => {
                if last.len() >= MAX_REMEMBERED && !last.contains_key(host) {
                    last.clear();
                }
                last.insert(host.to_owned(), addresses.clone());
                Ok(addresses)
            }
            Err(error) => last.get(host).cloned().ok_or(error),
        }
    }

    async fn ask(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let configuration = |error: hickory_resolver::net::NetError| ResolveError::Configuration(error.to_string());
        let resolver = self
            .shared
            .resolver
            .get_or_try_init(|| async {
                TokioResolver::builder_tokio().map_err(configuration)?.build().map_err(configuration)
            })
            .await?;
        // Fully qualified: the pod's search domains are for the application's names.
        let name = if host.ends_with('.') { host.to_owned() } else { format!("{host}.") };
        let answer = resolver
            .lookup_ip(name)
            .await
            .map_err(|error| ResolveError::Lookup { host: host.to_owned(), problem: error.to_string() })?;
        let addresses: Vec<IpAddr> =
            answer.iter().filter(|address| may_be_a_gateway(*address, self.shared.loopback_allowed)).collect();
        if addresses.is_empty() {
            return Err(ResolveError::Forbidden(host.to_owned()));
        }
        Ok(addresses)
    }
}

/// Whoever controls a name must not point it at what is private to this host.
fn may_be_a_gateway(address: IpAddr, loopback_allowed: bool) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !link_local && !address.is_unspecified() && !address.is_multicast() && (loopback_allowed || !address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn names_cannot_point_at_what_is_private_to_the_host() {
        let refused = ["169.254.169.254", "0.0.0.0", "224.0.0.1", "::", "fe80::1", "ff02::1", "::ffff:169.254.1.1"];
        for address in refused {
            assert!(!may_be_a_gateway(address.parse().unwrap(), true), "{address}");
        }
        assert!(!may_be_a_gateway("127.0.0.1".parse().unwrap(), false));
        assert!(may_be_a_gateway("127.0.0.1".parse().unwrap(), true));
        assert!(may_be_a_gateway("203.0.113.1".parse().unwrap(), false));
    }

    #[tokio::test]
    async fn an_address_needs_no_name_server() {
        let address = GatewayAddress::Ip("203.0.113.1".parse().unwrap());
        let resolved = Resolver::new(false).resolve(&address, 15443).await.unwrap();
        assert_eq!(resolved, ["203.0.113.1:15443".parse().unwrap()]);
    }
}
