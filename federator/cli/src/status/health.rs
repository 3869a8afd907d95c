//! What counts as wrong.
//!
//! Wrong is what an operator has to do something about, here or elsewhere: not being a member, a connection to the
//! federation that does not stand, a cluster that is lost, unreachable or alarming, a manifest that is not understood.
//! A quarantined cluster is somebody's decision, and a gateway that drains is on its way out: neither is wrong.

use crate::admin::wire::{Cluster, Link, Status};

/// One sentence for each thing that is wrong; none when all is well.
pub(super) fn findings(status: &Status) -> Vec<String> {
    let mut findings = Vec::new();
    if !status.membership.joined {
        findings.push("the cluster is not a member of a federation".to_owned());
    }
    if let Some(error) = &status.membership.error {
        findings.push(format!("membership: {error}"));
    }
    if status.membership.joined {
        findings.extend(of_link("trust-bundle", &status.trust_bundle));
        findings.extend(of_link("federator", &status.federator));
    }
    findings.extend(status.problems.iter().map(|problem| format!("manifests: {problem}")));
    findings.extend(status.clusters.iter().filter(|it| !it.local && !it.quarantined).flat_map(of_cluster));
    findings
}

fn of_link(name: &str, link: &Link) -> Option<String> {
    let why = link.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match (link.connected, link.synced) {
        (false, _) => Some(format!("{name}: not connected{why}")),
        (true, false) => Some(format!("{name}: the first full state has not been applied yet")),
        (true, true) => None,
    }
}

fn of_cluster(cluster: &Cluster) -> Vec<String> {
    let name = &cluster.name;
    let mut findings: Vec<_> = cluster.alarms.iter().map(|alarm| format!("cluster {name}: {alarm}")).collect();
    if !cluster.bundle {
        findings.push(format!("cluster {name}: its trust bundle has not arrived, so it cannot be called"));
    }
    if cluster.connected == Some(false) {
        findings.push(format!("cluster {name}: the federation has lost touch with it; it is used last"));
    }
    let taking = cluster.gateways.iter().filter(|gateway| !gateway.draining);
    for gateway in taking.filter(|gateway| gateway.reachable == Some(false)) {
        let why = gateway.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        findings.push(format!("cluster {name}: gateway {} at {} is unreachable{why}", gateway.name, gateway.address));
    }
    if cluster.exports > 0 && cluster.gateways.is_empty() {
        findings.push(format!("cluster {name}: exports services, but has no gateway"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire::{Gateway, Membership};

    fn well() -> Status {
        let link = Link { connected: true, synced: true, ..Link::default() };
        Status {
            membership: Membership { joined: true, ..Membership::default() },
            trust_bundle: link.clone(),
            federator: link,
            clusters: vec![Cluster {
                name: "west".to_owned(),
                connected: Some(true),
                bundle: true,
                exports: 2,
                gateways: vec![Gateway { name: "a".to_owned(), reachable: Some(true), ..Gateway::default() }],
                ..Cluster::default()
            }],
            ..Status::default()
        }
    }

    fn broken(change: impl FnOnce(&mut Status, &mut Cluster)) -> Vec<String> {
        let mut status = well();
        let mut west = status.clusters.remove(0);
        change(&mut status, &mut west);
        status.clusters.push(west);
        findings(&status)
    }

    #[test]
    fn a_federation_that_works_has_no_findings() {
        assert_eq!(broken(|_, _| {}), Vec::<String>::new());
        assert_eq!(broken(|_, west| west.gateways[0].reachable = None), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_one_finding() {
        type Fault = fn(&mut Status, &mut Cluster);
        let faults: [(Fault, &str); 9] = [
            (|status, _| status.membership.joined = false, "not a member"),
            (|status, _| status.membership.error = Some("renewal fails".to_owned()), "renewal fails"),
            (|status, _| status.trust_bundle.connected = false, "trust-bundle: not connected"),
            (|status, _| status.federator.synced = false, "federator: the first full state"),
            (|status, _| status.problems.push("a.yaml:3: no kind".to_owned()), "a.yaml:3"),
            (|_, west| west.connected = Some(false), "lost touch"),
            (|_, west| west.bundle = false, "trust bundle"),
            (|_, west| west.gateways[0].reachable = Some(false), "gateway a"),
            (|_, west| west.gateways.clear(), "no gateway"),
        ];
        for (fault, expected) in faults {
            let found = broken(fault);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
    }

    #[test]
    fn decisions_of_operators_are_no_faults() {
        let quarantined = broken(|_, west| {
            west.quarantined = true;
            west.connected = Some(false);
        });
        assert_eq!(quarantined, Vec::<String>::new());
        let draining = broken(|_, west| {
            west.gateways[0].draining = true;
            west.gateways[0].reachable = Some(false);
        });
        assert_eq!(draining, Vec::<String>::new());
    }
}
