//! What a member may say: its delegation under the membership root, and how receivers hold it to that.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use ipnet::IpNet;

use crate::export::{Export, Gateway, GatewayAddress};
use crate::name::Namespace;

/// More endpoints in one zone than any cluster runs: what a peer claims beyond it is taken for this.
pub const MAX_CAPACITY: u32 = 100_000;

/// Which namespaces a member may export from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceSet {
    /// All of them ("*").
    All,
    /// These.
    Some(BTreeSet<Namespace>),
}

/// A host name that a member's gateways may have: exact, or `*.suffix` for every name below a suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(String);

impl HostPattern {
    /// A pattern, compared without case.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.trim_end_matches('.').to_ascii_lowercase())
    }

    /// Whether a host name fits.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match self.0.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => host.len() > suffix.len() && host.ends_with(suffix),
            _ => host == self.0,
        }
    }
}

/// What a member may claim, from its join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegation {
    /// Namespaces it may export from.
    pub namespaces: NamespaceSet,
    /// Ranges in which its gateways may lie; empty: everywhere but in [reserved](is_reserved) ranges.
    pub address_ranges: Vec<IpNet>,
    /// Host names that its gateways may have; empty: any.
    pub host_names: Vec<HostPattern>,
    /// When it joined: nothing of it is older.
    pub joined: SystemTime,
}

/// A claim beyond a delegation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overreach {
    /// An export from a namespace that was not delegated.
    #[error("namespace {0} is not delegated to the cluster")]
    Namespace(Namespace),
    /// A gateway at an address that was not delegated, or in a reserved range.
    #[error("gateway {gateway}: address {address} is not delegated to the cluster")]
    Address {
        /// The gateway's name.
        gateway: String,
        /// Its address.
        address: IpAddr,
    },
    /// A gateway with a host name that was not delegated.
    #[error("gateway {gateway}: host name {host:?} is not delegated to the cluster")]
    Host {
        /// The gateway's name.
        gateway: String,
        /// Its host name.
        host: String,
    },
}

impl Delegation {
    /// Whether exports from the namespace are believed.
    #[must_use]
    pub fn allows_namespace(&self, namespace: &Namespace) -> bool {
        match &self.namespaces {
            NamespaceSet::All => true,
            NamespaceSet::Some(allowed) => allowed.contains(namespace),
        }
    }

    /// Whether a gateway may have the address. Whoever resolves a gateway's host name asks again with what it resolved to.
    #[must_use]
    pub fn allows_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if self.address_ranges.is_empty() {
            return !is_reserved(address);
        }
        self.address_ranges
            .iter()
            .any(|range| range.contains(&address) && (!is_reserved(address) || is_reserved_range(range)))
    }

    /// Whether a gateway may have the host name.
    #[must_use]
    pub fn allows_host(&self, host: &str) -> bool {
        is_host_name(host)
            && (self.host_names.is_empty() || self.host_names.iter().any(|pattern| pattern.matches(host)))
    }

    /// Holds an export to the delegation: a creation time before the join becomes the join's, capacity is bounded.
    ///
    /// # Errors
    /// [`Overreach::Namespace`] when the namespace was not delegated: nothing of the export is believed.
    pub fn clamp_export(&self, mut export: Export) -> Result<Export, Overreach> {
        if !self.allows_namespace(&export.service.namespace) {
            return Err(Overreach::Namespace(export.service.namespace));
        }
        export.created = export.created.max(self.joined);
        for zone in &mut export.zones {
            zone.total = zone.total.min(MAX_CAPACITY);
            zone.ready = zone.ready.min(zone.total);
        }
        Ok(export)
    }

    /// The gateways that are within the delegation, and what was refused.
    #[must_use]
    pub fn clamp_gateways(&self, gateways: Vec<Gateway>) -> (Vec<Gateway>, Vec<Overreach>) {
        let mut refused = Vec::new();
        let believed = gateways
            .into_iter()
            .filter(|gateway| {
                let overreach = match &gateway.address {
                    GatewayAddress::Ip(address) if !self.allows_address(*address) => {
                        Overreach::Address { gateway: gateway.name.clone(), address: *address }
                    }
                    GatewayAddress::Host(host) if !self.allows_host(host) => {
                        Overreach::Host { gateway: gateway.name.clone(), host: host.clone() }
                    }
                    GatewayAddress::Ip(_) | GatewayAddress::Host(_) => return true,
                };
                refused.push(overreach);
                false
            })
            .collect();
        (believed, refused)
    }
}

/// Addresses that reach something else for whoever dials them: unspecified, loopback, link-local (cloud metadata among
/// them), multicast, broadcast. A peer's word must not send anybody there unless its delegation names such a range.
#[must_use]
pub fn is_reserved(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.octets()[0] == 0
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address == Ipv4Addr::BROADCAST
                || address == Ipv4Addr::new(100, 100, 100, 200)
        }
        IpAddr::V6(address) => {
            address == Ipv6Addr::UNSPECIFIED
                || address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
    }
}

/// A range that can only have been meant to name reserved addresses, unlike 0.0.0.0/0.
fn is_reserved_range(range: &IpNet) -> bool {
    range.prefix_len() >= 8 && is_reserved(range.network()) && is_reserved(range.broadcast())
}

fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && host.parse::<IpAddr>().is_err()
        && host.split('.').all(|label| Namespace::parse(&label.to_ascii_lowercase()).is_ok())
}
