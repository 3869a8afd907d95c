//! Where an endpoint or a client is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Region and zone, from `topology.kubernetes.io/region` and `topology.kubernetes.io/zone`; empty where unknown. An
/// unknown zone or region is never the same as another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Locality {
    /// Region, for example `eu-west-1`.
    pub region: String,
    /// Zone, for example `eu-west-1a`.
    pub zone: String,
}

impl Locality {
    /// A locality from its names.
    #[must_use]
    pub fn new(region: impl Into<String>, zone: impl Into<String>) -> Self {
        Self { region: region.into(), zone: zone.into() }
    }

    /// Both in one known zone (of one region, where regions are known).
    #[must_use]
    pub fn same_zone(&self, other: &Self) -> bool {
        !self.zone.is_empty() && self.zone == other.zone && self.region == other.region
    }

    /// Both in one known region.
    #[must_use]
    pub fn same_region(&self, other: &Self) -> bool {
        !self.region.is_empty() && self.region == other.region
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.region, self.zone)
    }
}
