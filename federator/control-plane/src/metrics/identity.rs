//! How the cluster's identities are: until when they hold, and whether their renewal goes on.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::authority::OwnAuthority;
use crate::plane::PlaneHandle;
use crate::rotation::{Key, Rotations};
use crate::snapshot::Snapshot;

/// Whose state is shown.
#[derive(Clone)]
pub struct Identities {
    /// The cluster's own authority.
    pub authority: OwnAuthority,
    /// The membership's certificate.
    pub plane: PlaneHandle,
    /// What is being replaced.
    pub rotations: Rotations,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeyLabel {
    key: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DomainLabel {
    trust_domain: String,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    not_after: Family<WhatLabel, Gauge>,
    renewal_failing: Family<WhatLabel, Gauge>,
    rotation_stalled: Family<KeyLabel, Gauge>,
    shared_key: Family<DomainLabel, Gauge>,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let it = self.clone();
        let help = "Until when a certificate of the cluster holds, Unix time";
        registry.register_with_unit("certificate_not_after_timestamp", help, Unit::Seconds, it.not_after);
        let help = "1 while a certificate of the cluster is not renewed though it is time";
        registry.register("certificate_renewal_failing", help, it.renewal_failing);
        let help = "1 while the rotation of a key is stalled or fails";
        registry.register("rotation_stalled", help, it.rotation_stalled);
        let help = "1 while a foreign bundle is not believed because it holds a root's key of a member";
        registry.register("foreign_bundle_shared_key", help, it.shared_key);
    }

    pub(super) fn show(&self, identities: &Identities, snapshot: &Snapshot) {
        self.shared_key.clear();
        for trust_domain in snapshot.foreign_refused.keys() {
            self.shared_key.get_or_create(&DomainLabel { trust_domain: trust_domain.to_string() }).set(1);
        }
        let (authority, member) = (identities.authority.status(), identities.plane.member_certificate());
        let ends = [
            ("root", Some(authority.not_after)),
            ("intermediate", authority.intermediate_not_after),
            ("member", member.not_after),
        ];
        for (what, end) in ends {
            if let Some(end) = end {
                self.not_after.get_or_create(&WhatLabel { what }).set(seconds(end));
            } else {
                // Nothing that does not exist comes to an end.
                self.not_after.remove(&WhatLabel { what });
            }
        }
        for (what, problem) in [("authority", authority.problem), ("member", member.problem)] {
            self.renewal_failing.get_or_create(&WhatLabel { what }).set(i64::from(problem.is_some()));
        }
        for rotation in identities.rotations.status() {
            let key = match rotation.key {
                Key::Root => "root",
                Key::Intermediate => "intermediate",
                Key::PublishKey => "publish-key",
            };
            let stalled = rotation.stalled || rotation.problem.is_some();
            self.rotation_stalled.get_or_create(&KeyLabel { key }).set(i64::from(stalled));
        }
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
