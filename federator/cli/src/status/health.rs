//! What counts as wrong.
//!
//! Wrong is what an operator has to do something about, here or elsewhere: not being a member, a connection to the
//! federation that does not stand, a cluster that is lost, unreachable or alarming, a manifest that is not understood.
//! A quarantined cluster is somebody's decision, and a gateway that drains is on its way out: neither is wrong.

use crate::admin::wire::{Cluster, ForeignRefused, Link, Status};

/// One sentence for each thing that is wrong; none when all is well.
pub(super) fn findings(status: &Status) -> Vec<String> {
    let mut findings = Vec::new();
    if status.joined {
        findings.extend(of_link("trust-bundle", &status.trust_bundle));
        findings.extend(of_link("federator", &status.federator));
        if !status.synced {
            findings.push("the first full state of the federation has not been applied yet".to_owned());
        }
    } else {
        findings.push("the cluster is not a member of a federation".to_owned());
    }
    if let Some(standing) = status.standing.as_deref().filter(|standing| *standing != "member") {
        findings.push(format!("the cluster's membership: {standing}"));
    }
    findings.extend(status.leave_problem.iter().map(|problem| format!("leave: {problem}")));
    findings.extend(status.authority.problem.iter().map(|problem| format!("authority: {problem}")));
    let certificate = status.member_certificate.problem.iter();
    findings.extend(certificate.map(|problem| format!("member certificate: not renewed: {problem}")));
    findings.extend(status.foreign_refused.iter().map(|refused| {
        let ForeignRefused { trust_domain, shares_key_with } = refused;
        format!("trust domain {trust_domain}: not believed, its bundle holds a root's key of {shares_key_with}")
    }));
    for rotation in status.rotations.iter().filter(|rotation| rotation.stalled || rotation.problem.is_some()) {
        findings.push(format!("rotation of {}: {}", rotation.key, crate::rotate::told(rotation)));
    }
    if !status.waiting_for.is_empty() {
        findings.push(format!("control-plane: not ready, it waits for {}", status.waiting_for.join(", ")));
    }
    for proxy in &status.proxies {
        findings.extend(proxy.error.iter().map(|error| format!("{} {}: {error}", proxy.kind, proxy.name)));
    }
    findings.extend(status.manifests.problems.iter().map(|problem| format!("manifests: {}", problem.text)));
    let unsaid = status.manifests.problem_count.saturating_sub(status.manifests.problems.len() as u64);
    if unsaid > 0 {
        findings.push(format!("manifests: and {unsaid} problems more"));
    }
    findings.extend(status.clusters.iter().filter(|it| !it.quarantined).flat_map(of_cluster));
    findings
}

fn of_link(name: &str, link: &Link) -> Option<String> {
    let why = link.problem.as_deref().map(|problem| format!(": {problem}")).unwrap_or_default();
    (!link.connected).then(|| format!("{name}: not connected{why}"))
}

fn of_cluster(cluster: &Cluster) -> Vec<String> {
    let name = &cluster.cluster;
    let alarms = cluster.alarms.iter().map(|alarm| format!("cluster {name}: {}: {}", alarm.kind, alarm.detail));
    let mut findings: Vec<_> = alarms.collect();
    if !cluster.bundle {
        findings.push(format!("cluster {name}: its trust bundle has not arrived, so it cannot be called"));
    }
    if cluster.connected == Some(false) {
        findings.push(format!("cluster {name}: the federation has lost touch with it; it is used last"));
    }
    let taking = cluster.gateways.iter().filter(|gateway| !gateway.draining);
    for gateway in taking.filter(|gateway| gateway.reachable == Some(false)) {
        let why = gateway.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        findings.push(format!("cluster {name}: gateway {} is unreachable{why}", super::place(gateway)));
    }
    if cluster.exports > 0 && cluster.gateways.is_empty() {
        findings.push(format!("cluster {name}: exports services, but has no gateway"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire::{Alarm, Gateway, Problem, Proxy};

    fn well() -> Status {
        let link = Link { connected: true, ..Link::default() };
        Status {
            joined: true,
            synced: true,
            trust_bundle: link.clone(),
            federator: link,
            clusters: vec![Cluster {
                cluster: "west".to_owned(),
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
        let faults: [(Fault, &str); 12] = [
            (|status, _| status.joined = false, "not a member"),
            (|status, _| status.trust_bundle.connected = false, "trust-bundle: not connected"),
            (|status, _| status.federator.connected = false, "federator: not connected"),
            (|status, _| status.synced = false, "the first full state"),
            (|status, _| status.member_certificate.problem = Some("refused".to_owned()), "not renewed: refused"),
            (|status, _| status.waiting_for.push("manifests".to_owned()), "waits for manifests"),
            (
                |status, _| {
                    let error = Some("refused a resource".to_owned());
                    status.proxies.push(Proxy { name: "cart-0".to_owned(), error, ..Proxy::default() });
                },
                "cart-0: refused",
            ),
            (|status, _| status.manifests.problems.push(Problem { text: "a.yaml:3: no kind".to_owned() }), "a.yaml:3"),
            (|_, west| west.connected = Some(false), "lost touch"),
            (|_, west| west.bundle = false, "trust bundle"),
            (|_, west| west.gateways[0].reachable = Some(false), "gateway a"),
            (|_, west| west.alarms.push(Alarm { kind: "withheld".to_owned(), ..Alarm::default() }), "withheld"),
        ];
        for (fault, expected) in faults {
            let found = broken(fault);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
        assert_eq!(broken(|_, west| west.gateways.clear()).len(), 1);
    }

    #[test]
    fn problems_that_are_not_spelt_out_are_counted() {
        let found = broken(|status, _| status.manifests.problem_count = 7);
        assert_eq!(found, ["manifests: and 7 problems more"]);
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
