//! One import of many exports, by the rules of KEP-1645.
//!
//! The oldest export decides everything that must be one for the clusterset; creation times have whole seconds, so ties
//! go to the cluster whose name sorts first. Ports are the union: by name, then by (protocol, port), older exports first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::export::{Export, IpFamily, Port, ServiceType};
use crate::name::{ClusterName, ServiceId};

/// A service as every cluster of the federation sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The service.
    pub service: ServiceId,
    /// Its kind, the oldest export's.
    pub service_type: ServiceType,
    /// The union of the ports.
    pub ports: Vec<ImportPort>,
    /// The oldest export's session affinity.
    pub client_ip_affinity: Option<Duration>,
    /// The oldest export's families.
    pub ip_families: Vec<IpFamily>,
    /// The oldest export's.
    pub internal_traffic_policy: String,
    /// The oldest export's.
    pub traffic_distribution: String,
    /// The oldest export's.
    pub labels: BTreeMap<String, String>,
    /// The oldest export's.
    pub annotations: BTreeMap<String, String>,
    /// Who exports it with the type that won.
    pub clusters: BTreeSet<ClusterName>,
}

/// A port of an import, and the clusters that expose it just so: traffic to it goes to them only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportPort {
    /// The port.
    pub port: Port,
    /// Who exposes it.
    pub clusters: BTreeSet<ClusterName>,
}

/// Why the exports of a service conflict: the reasons of the `Conflict` condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConflictReason {
    /// Ports are not identical.
    PortConflict,
    /// Headless here, not there.
    TypeConflict,
    /// Session affinity differs.
    SessionAffinityConflict,
    /// The affinity's timeout differs.
    SessionAffinityConfigConflict,
    /// Exported labels differ.
    LabelsConflict,
    /// Exported annotations differ.
    AnnotationsConflict,
    /// `internalTrafficPolicy` differs.
    InternalTrafficPolicyConflict,
    /// `trafficDistribution` differs.
    TrafficDistributionConflict,
    /// IP families differ.
    IPFamilyConflict,
}

impl fmt::Display for ConflictReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// What became of the exports of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The import.
    pub import: Import,
    /// What the exports disagree on; `Conflict=True` goes on all of them.
    pub conflicts: BTreeSet<ConflictReason>,
    /// One sentence for each disagreement, naming the clusters.
    pub details: Vec<String>,
}

/// Merges the exports of one service; `None` when there are none.
pub fn merge<'a>(exports: impl IntoIterator<Item = (&'a ClusterName, &'a Export)>) -> Option<Merged> {
    let mut exports: Vec<_> = exports.into_iter().collect();
    exports.sort_by(|(cluster, export), (other_cluster, other)| {
        (export.created, *cluster).cmp(&(other.created, *other_cluster))
    });
    let (oldest_cluster, oldest) = *exports.first()?;
    let mut found = Disagreements { oldest: oldest_cluster, conflicts: BTreeSet::new(), details: Vec::new() };
    for (cluster, export) in exports.iter().skip(1) {
        found.compare(cluster, oldest, export);
    }
    let agreeing: Vec<_> =
        exports.iter().copied().filter(|(_, export)| export.service_type == oldest.service_type).collect();
    let ports = union_of_ports(&agreeing, &mut found);
    Some(Merged {
        import: Import {
            service: oldest.service.clone(),
            service_type: oldest.service_type,
            ports,
            client_ip_affinity: oldest.client_ip_affinity,
            ip_families: oldest.ip_families.clone(),
            internal_traffic_policy: oldest.internal_traffic_policy.clone(),
            traffic_distribution: oldest.traffic_distribution.clone(),
            labels: oldest.labels.clone(),
            annotations: oldest.annotations.clone(),
            clusters: agreeing.iter().map(|(cluster, _)| (*cluster).clone()).collect(),
        },
        conflicts: found.conflicts,
        details: found.details,
    })
}

struct Disagreements<'a> {
    oldest: &'a ClusterName,
    conflicts: BTreeSet<ConflictReason>,
    details: Vec<String>,
}

impl Disagreements<'_> {
    fn compare(&mut self, cluster: &ClusterName, oldest: &Export, export: &Export) {
        use ConflictReason as Reason;
        let affinity = |export: &Export| export.client_ip_affinity.is_some();
        let both_affine = affinity(oldest) && affinity(export);
        let checks = [
            (Reason::TypeConflict, "type", oldest.service_type != export.service_type),
            (Reason::SessionAffinityConflict, "sessionAffinity", affinity(oldest) != affinity(export)),
            (
                Reason::SessionAffinityConfigConflict,
                "sessionAffinityConfig",
                both_affine && oldest.client_ip_affinity != export.client_ip_affinity,
            ),
            (Reason::LabelsConflict, "exportedLabels", oldest.labels != export.labels),
            (Reason::AnnotationsConflict, "exportedAnnotations", oldest.annotations != export.annotations),
            (
                Reason::InternalTrafficPolicyConflict,
                "internalTrafficPolicy",
                oldest.internal_traffic_policy != export.internal_traffic_policy,
            ),
            (
                Reason::TrafficDistributionConflict,
                "trafficDistribution",
                oldest.traffic_distribution != export.traffic_distribution,
            ),
            (Reason::IPFamilyConflict, "ipFamilies", oldest.ip_families != export.ip_families),
        ];
        for (reason, field, differs) in checks {
            if differs {
                let text =
                    format!("{field} of cluster {cluster} differs from that of cluster {}, the oldest", self.oldest);
                self.add(reason, text);
            }
        }
    }

    fn add(&mut self, reason: ConflictReason, text: String) {
        self.conflicts.insert(reason);
        self.details.push(text);
    }
}

/// The union of the ports. A port that clashes with an older one, in its name or in (protocol, port), is left out, and
/// its cluster gets no traffic for it. Any difference at all is a conflict.
fn union_of_ports(exports: &[(&ClusterName, &Export)], found: &mut Disagreements<'_>) -> Vec<ImportPort> {
    let mut union: Vec<ImportPort> = Vec::new();
    for (cluster, export) in exports {
        for port in &export.ports {
            let same = |known: &ImportPort| {
                known.port.name == port.name && known.port.port == port.port && known.port.protocol == port.protocol
            };
            if let Some(known) = union.iter_mut().find(|known| same(known)) {
                known.clusters.insert((*cluster).clone());
                continue;
            }
            let clash = union.iter().find(|known| {
                known.port.name == port.name || (known.port.protocol, known.port.port) == (port.protocol, port.port)
            });
            if clash.is_none() {
                union.push(ImportPort { port: port.clone(), clusters: BTreeSet::from([(*cluster).clone()]) });
            }
        }
    }
    let ports_of = |export: &Export| export.ports.iter().cloned().collect::<BTreeSet<_>>();
    if let Some((oldest_cluster, oldest)) = exports.first() {
        for (cluster, export) in exports.iter().skip(1) {
            if ports_of(export) != ports_of(oldest) {
                found.add(
                    ConflictReason::PortConflict,
                    format!("ports of cluster {cluster} differ from those of cluster {oldest_cluster}, the oldest"),
                );
            }
        }
    }
    union
}
