//! What the balancer is given: groups of members in order of preference.

use std::{fmt, sync::Arc};

/// Everything a service's requests may go to, in order of preference.
///
/// Groups need no particular order here; their [`Group::priority`] says it. A member key that appears twice counts
/// where it appears first, and so does a group name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<K> {
    /// The groups: one per zone of the own cluster, one per remote cluster.
    pub groups: Vec<Group<K>>,
}

impl<K> Default for Plan<K> {
    fn default() -> Self {
        Self { groups: Vec::new() }
    }
}

/// Members that are equally near and fail together: the endpoints of one zone, or the ways to one remote cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<K> {
    /// Preference; 0 is used first. Gaps are allowed, and several groups may share one.
    pub priority: u32,
    /// What the group is called in statistics and explanations, e.g. `east/zone-a`.
    pub name: GroupName,
    /// Whether members are endpoints, or gateways that lead to them.
    pub reach: Reach,
    /// Endpoints that exist, ready or not.
    pub capacity_total: u32,
    /// Endpoints that are ready; the group's weight within its priority.
    pub capacity_ready: u32,
    /// A fixed weight within its priority, in place of what is ready, while anything of it is healthy.
    pub share: Option<u32>,
    /// The cluster's lease is gone. By itself this moves no traffic.
    pub suspect: bool,
    /// Where requests can be sent.
    pub members: Vec<Member<K>>,
}

/// How the members of a group relate to its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Members are the endpoints themselves: each ejected one takes its share of the capacity with it. The group is
    /// never ejected as a whole.
    Endpoints,
    /// Members are paths through gateways: any of them reaches the whole capacity, so losing a path costs nothing while
    /// another is left. The group can be ejected as one.
    Gateways,
}

/// One place a request can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<K> {
    /// The caller's key; cheap to clone.
    pub id: K,
    /// Share of the group's requests relative to its other members. If all are 0, all count as 1.
    pub weight: u32,
    /// The gateway this path goes through: its paths are ejected together when the gateway fails.
    pub gateway: Option<GatewayName>,
}

impl<K> Member<K> {
    /// A member that is an endpoint itself, with weight 1.
    pub const fn endpoint(id: K) -> Self {
        Self { id, weight: 1, gateway: None }
    }

    /// A path through a gateway, with weight 1.
    pub const fn path(id: K, gateway: GatewayName) -> Self {
        Self { id, weight: 1, gateway: Some(gateway) }
    }
}

/// A group's name, e.g. `east/zone-a` or `west`. Cloning shares it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(Arc<str>);

/// A gateway's name within its group, e.g. its address. Cloning shares it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayName(Arc<str>);

/// The real endpoint that answered behind a gateway, as it named itself. Cloning shares it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(Arc<str>);

/// Longest endpoint id accepted, in bytes: peers choose them, and they are kept.
const MAX_ENDPOINT_ID: usize = 256;

/// A peer's endpoint id was not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointIdError {
    /// Nothing was given.
    #[error("an endpoint id may not be empty")]
    Empty,
    /// More than 256 bytes.
    #[error("an endpoint id of {0} bytes is longer than {MAX_ENDPOINT_ID}")]
    TooLong(usize),
}

impl EndpointId {
    /// Checks and keeps an id that a peer named.
    ///
    /// # Errors
    /// When it is empty or longer than 256 bytes.
    pub fn new(id: &str) -> Result<Self, EndpointIdError> {
        match id.len() {
            0 => Err(EndpointIdError::Empty),
            length if length > MAX_ENDPOINT_ID => Err(EndpointIdError::TooLong(length)),
            _ => Ok(Self(id.into())),
        }
    }

    /// The id as it was named.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl GroupName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl GatewayName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, formatter)
            }
        }
    )*};
}
text!(GroupName, GatewayName, EndpointId);

impl<T: Into<Arc<str>>> From<T> for GroupName {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

impl<T: Into<Arc<str>>> From<T> for GatewayName {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

#[cfg(test)]
mod tests {
    use super::{EndpointId, EndpointIdError};

    #[test]
    fn an_endpoint_id_is_bounded() {
        assert_eq!(EndpointId::new("").err(), Some(EndpointIdError::Empty));
        assert_eq!(EndpointId::new(&"x".repeat(257)).err(), Some(EndpointIdError::TooLong(257)));
        let id = EndpointId::new(&"x".repeat(256));
        assert_eq!(id.map(|id| id.as_str().len()), Ok(256));
    }
}
