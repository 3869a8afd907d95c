//! The server name between clusters: `outbound_.<port>_.<subset>_.<service host>`, cut at the first three `_.`, as Istio
//! writes it for AUTO_PASSTHROUGH gateways.

use std::fmt;
use std::str::FromStr;

use crate::name::{ClusterName, MeshHost, NameError};

/// Why a server name routes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SniError {
    /// Not of the form `outbound_.<port>_.<subset>_.<host>`.
    #[error("server name {0:?} is not of the form outbound_.<port>_.<subset>_.<host>")]
    Form(String),
    /// The port is not a number from 1 to 65535.
    #[error("server name {0:?} has no valid port")]
    Port(String),
    /// The subset is not empty, `c-<cluster>` or `c-<cluster>.e-<slot>`.
    #[error("server name {0:?} has an unknown subset")]
    Subset(String),
    /// The host is no service.
    #[error("server name has no service host: {0}")]
    Host(#[from] NameError),
}

/// Which endpoints a connection may go to, from the middle of the name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subset {
    /// Empty, as an Istio-style client sends it: whoever routes may choose.
    Any,
    /// `c-<cluster>`: an endpoint of that cluster.
    Cluster(ClusterName),
    /// `c-<cluster>.e-<slot>`: the endpoint of that cluster that the slot hashes to (see [`crate::slot`]).
    Slot(ClusterName, u16),
}

/// A parsed server name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sni {
    /// The service's port, not the target port.
    pub port: u16,
    /// Which endpoints.
    pub subset: Subset,
    /// The service.
    pub host: MeshHost,
}

impl fmt::Display for Sni {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "outbound_.{}_.", self.port)?;
        match &self.subset {
            Subset::Any => {}
            Subset::Cluster(cluster) => write!(formatter, "c-{cluster}")?,
            Subset::Slot(cluster, slot) => write!(formatter, "c-{cluster}.e-{slot}")?,
        }
        write!(formatter, "_.{}", self.host)
    }
}

impl FromStr for Sni {
    type Err = SniError;

    fn from_str(text: &str) -> Result<Self, SniError> {
        let lower = text.to_ascii_lowercase();
        let mut parts = lower.splitn(4, "_.");
        let (Some("outbound"), Some(port), Some(subset), Some(host)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SniError::Form(text.to_owned()));
        };
        Ok(Self {
            port: parse_decimal(port).filter(|port| *port > 0).ok_or_else(|| SniError::Port(text.to_owned()))?,
            subset: parse_subset(subset).ok_or_else(|| SniError::Subset(text.to_owned()))?,
            host: host.parse()?,
        })
    }
}

fn parse_subset(text: &str) -> Option<Subset> {
    if text.is_empty() {
        return Some(Subset::Any);
    }
    let rest = text.strip_prefix("c-")?;
    match rest.split_once(".e-") {
        None => Some(Subset::Cluster(rest.parse().ok()?)),
        Some((cluster, slot)) => Some(Subset::Slot(cluster.parse().ok()?, parse_decimal(slot)?)),
    }
}

/// One spelling per number: no sign, no leading zero.
fn parse_decimal(text: &str) -> Option<u16> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    canonical.then(|| text.parse().ok()).flatten()
}
