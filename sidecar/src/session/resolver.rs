//! Gateways' addresses, which may be host names.

use std::net::SocketAddr;

use federation::GatewayAddress;

pub(crate) use mesh_runtime::resolver::ResolveError;

/// Resolves gateways' names. Clones share what is known.
#[derive(Clone)]
pub(crate) struct Resolver(mesh_runtime::resolver::Resolver);

impl Resolver {
    /// `loopback_allowed`: this sidecar's own workload lives on loopback.
    pub(crate) fn new(loopback_allowed: bool) -> Self {
        Self(mesh_runtime::resolver::Resolver::new(loopback_allowed))
    }

    /// The addresses to try, in order.
    pub(crate) async fn resolve(&self, address: &GatewayAddress, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
        match address {
            GatewayAddress::Ip(address) => Ok(vec![SocketAddr::new(*address, port)]),
            GatewayAddress::Host(host) => {
                let addresses = self.0.resolve(host).await?.addresses;
                Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_name_server() {
        let address = GatewayAddress::Ip("203.0.113.1".parse().unwrap());
        let resolved = Resolver::new(false).resolve(&address, 15443).await.unwrap();
        assert_eq!(resolved, ["203.0.113.1:15443".parse().unwrap()]);
    }
}
