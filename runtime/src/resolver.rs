//! Host names of machines elsewhere, such as other clusters' gateways.
//!
//! Answers are kept for their TTL by the resolver, and the last one beyond it for as long as nobody answers: a dead name
//! server must not cut clusters apart.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::OnceCell;

/// How long a name server may take.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(1);

/// Names whose last answers are kept.
const MAX_REMEMBERED: usize = 1024;

/// For how long an answer counts that is used because no newer one came.
const STALE_FOR: Duration = Duration::from_secs(5);

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
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
    /// Answers that no machine elsewhere can have.
    #[error("{0} has no address that a gateway may have")]
    Forbidden(String),
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Never empty.
    pub addresses: Vec<IpAddr>,
    /// When to ask again: the end of the answer's TTL.
    pub valid_until: Instant,
}

/// Resolves names of machines elsewhere by the system's configuration. Clones share what is known.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    /// Made when the first name comes: most meshes use addresses.
    resolver: OnceCell<TokioResolver>,
    last: Mutex<HashMap<String, Vec<IpAddr>>>,
    loopback_allowed: bool,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// `loopback_allowed`: this process is itself reached on loopback, as in a lab.
    #[must_use]
    pub fn new(loopback_allowed: bool) -> Self {
        let shared = Shared { resolver: OnceCell::new(), last: Mutex::default(), loopback_allowed };
        Self { shared: Arc::new(shared) }
    }

    /// One that asks a given name server instead of the system's.
    #[must_use]
    pub fn asking(name_server: SocketAddr, loopback_allowed: bool) -> Self {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = name_server.port();
            connection
        });
        let server = NameServerConfig::new(name_server.ip(), true, connections.into());
        let config = ResolverConfig::from_name_servers(vec![server]);
        let resolver = Self::new(loopback_allowed);
        // It cannot fail: nothing is read from files.
        if let Ok(built) = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build() {
            let _ = resolver.shared.resolver.set(built);
        }
        resolver
    }

    /// The addresses of a fully qualified name, without those that are private to this host.
    ///
    /// # Errors
    /// Nobody answered, now or ever; or with no address that may be used.
    pub async fn resolve(&self, host: &str) -> Result<Resolved, ResolveError> {
        let answer = match tokio::time::timeout(LOOKUP_DEADLINE, self.ask(host)).await {
            Ok(answer) => answer,
            Err(_) => Err(ResolveError::Lookup { host: host.to_owned(), problem: "no answer in time".to_owned() }),
        };
        let mut last = self.shared.last.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(resolved) => {
                if last.len() >= MAX_REMEMBERED && !last.contains_key(host) {
                    last.clear();
                }
                last.insert(host.to_owned(), resolved.addresses.clone());
                Ok(resolved)
            }
            Err(error) => {
                let addresses = last.get(host).cloned().ok_or(error)?;
                Ok(Resolved { addresses, valid_until: Instant::now() + STALE_FOR })
            }
        }
    }

    async fn ask(&self, host: &str) -> Result<Resolved, ResolveError> {
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
            answer.iter().filter(|address| may_be_elsewhere(*address, self.shared.loopback_allowed)).collect();
        if addresses.is_empty() {
            return Err(ResolveError::Forbidden(host.to_owned()));
        }
        Ok(Resolved { addresses, valid_until: answer.valid_until() })
    }
}

/// Whoever controls a name must not point it at what is private to this host.
fn may_be_elsewhere(address: IpAddr, loopback_allowed: bool) -> bool {
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
            assert!(!may_be_elsewhere(address.parse().unwrap(), true), "{address}");
        }
        assert!(!may_be_elsewhere("127.0.0.1".parse().unwrap(), false));
        assert!(may_be_elsewhere("127.0.0.1".parse().unwrap(), true));
        assert!(may_be_elsewhere("203.0.113.1".parse().unwrap(), false));
    }
}
