//! `isthmus status`: membership, connections, and every other cluster as measured from here.

mod health;
mod sessions;

use std::time::Duration;

use serde::Serialize;

use crate::admin::Admin;
use crate::admin::wire::{Cluster, Gateway, Link, Status};
use crate::arguments;
use crate::failure::Failure;
use crate::output::{Output, Tone, Toned, visible};
use crate::rotate;
use crate::time::{brief, round_trip};

/// `isthmus status -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    /// Nothing is wrong: the exit code is 0.
    healthy: bool,
    /// What is wrong, one sentence each.
    findings: &'a [String],
    #[serde(flatten)]
    status: &'a Status,
}

/// Prints the state; whether it is as it should be.
pub(crate) async fn status(asked: &arguments::Status, admin: &Admin, output: &Output) -> Result<bool, Failure> {
    if !asked.federators.is_empty() {
        return sessions::show(&asked.federators, output).await;
    }
    let mut status = admin.status().await?;
    status.clusters.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    let findings = health::findings(&status);
    let report = Report { healthy: findings.is_empty(), findings: &findings, status: &status };
    output.show(&report, |output| page(&report, output))?;
    Ok(report.healthy)
}

fn page(report: &Report<'_>, output: &Output) -> String {
    let status = report.status;
    let mut page = String::new();
    let mut line = |label: &str, value: &Toned| page.push_str(&format!("{label:<14} {}\n", output.paint(value)));
    line("Cluster", &format!("{} of federation {}", status.cluster, status.federation).into());
    line("Trust domain", &Toned::or_dash(status.trust_domain.clone()));
    line("Membership", &membership(status));
    line("Authority", &authority(status));
    for rotation in status.rotations.iter().filter(|rotation| rotation.phase != "idle") {
        line("Rotation", &Toned::new(format!("{}: {}", rotation.key, rotate::told(rotation)), Tone::Doubtful));
    }
    line("Trust-bundle", &link(&status.trust_bundle));
    line("Federator", &link(&status.federator));
    line("Services", &format!("{} exported, {} in the federation", status.exports, status.imports).into());
    line("Proxies", &proxies(status).into());
    let gateways: Vec<_> = status.gateways.iter().map(place).collect();
    line("Gateways", &Toned::or_dash(gateways.join(", ")));
    let dns: Vec<_> = status.dns.iter().map(ToString::to_string).collect();
    line("DNS", &Toned::or_dash(dns.join(", ")));
    if !status.clusters.is_empty() {
        page.push('\n');
        page.push_str(&cluster_table(&status.clusters, output));
    }
    page.push('\n');
    if report.healthy {
        page.push_str(&format!("{}\n", output.paint(&Toned::new("healthy", Tone::Good))));
    } else {
        page.push_str(&format!("{}\n", output.paint(&Toned::new("not healthy:", Tone::Bad))));
        report.findings.iter().for_each(|finding| page.push_str(&format!("  {}\n", visible(finding))));
    }
    page
}

fn membership(status: &Status) -> Toned {
    if status.leaving {
        return Toned::new("leaving", Tone::Doubtful);
    }
    if let Some(standing) = status.standing.as_deref().filter(|standing| *standing != "member") {
        return Toned::new(standing, Tone::Bad);
    }
    match (status.joined, status.generation) {
        (true, Some(generation)) => Toned::new(format!("joined, generation {generation}"), Tone::Good),
        (true, None) => Toned::new("joined", Tone::Good),
        (false, _) => Toned::new("not joined: `isthmus join` hands over a token", Tone::Bad),
    }
}

fn authority(status: &Status) -> Toned {
    let authority = &status.authority;
    let Some(end) = authority.not_after else { return Toned::or_dash("") };
    let intermediate = authority.intermediate_not_after.map(|end| format!(", intermediate until {end}"));
    let roots = if authority.roots > 1 { format!("{} roots", authority.roots) } else { "root".to_owned() };
    let tone = if authority.problem.is_some() { Tone::Bad } else { Tone::Plain };
    Toned::new(format!("{roots} until {end}{}", intermediate.unwrap_or_default()), tone)
}

fn link(link: &Link) -> Toned {
    let age = link.age_ms.map(|age| format!(", last state {} ago", milliseconds(age))).unwrap_or_default();
    if link.connected {
        return Toned::new(format!("connected{age}"), Tone::Good);
    }
    let why = link.problem.as_deref().map(|problem| format!(": {problem}")).unwrap_or_default();
    Toned::new(format!("not connected{age}{why}"), Tone::Bad)
}

fn proxies(status: &Status) -> String {
    let gateways = status.proxies.iter().filter(|proxy| proxy.kind == "gateway").count();
    format!("sidecars {}, gateways {gateways}", status.proxies.len() - gateways)
}

/// `a (127.2.0.4:15443)`
fn place(gateway: &Gateway) -> String {
    let Gateway { name, address, port, draining, .. } = gateway;
    let address = if address.contains(':') { format!("[{address}]") } else { address.clone() };
    format!("{name} ({address}:{port}){}", if *draining { ", draining" } else { "" })
}

/// Clusters as measured from here, one line each.
pub(crate) fn cluster_table(clusters: &[Cluster], output: &Output) -> String {
    let rows = clusters.iter().map(|cluster| {
        let nearest = cluster.gateways.iter().filter_map(|gateway| gateway.round_trip_us).min();
        let probed = cluster.gateways.iter().filter_map(|gateway| gateway.age_ms).min();
        let alarms: Vec<_> = cluster.alarms.iter().map(|alarm| alarm.kind.as_str()).collect();
        vec![
            cluster.cluster.clone().into(),
            state(cluster),
            reachable(cluster),
            Toned::or_dash(nearest.map(|it| round_trip(Duration::from_micros(it))).unwrap_or_default()),
            Toned::or_dash(probed.map(milliseconds).unwrap_or_default()),
            Toned::or_dash(cluster.last_applied_age_ms.map(milliseconds).unwrap_or_default()),
            cluster.exports.to_string().into(),
            if alarms.is_empty() { Toned::or_dash("") } else { Toned::new(alarms.join(","), Tone::Bad) },
        ]
    });
    let header = ["CLUSTER", "STATE", "GATEWAYS REACHABLE", "RTT", "PROBED", "UPDATED", "EXPORTS", "ALARMS"];
    output.table(&header, rows.collect())
}

fn state(cluster: &Cluster) -> Toned {
    let since = cluster.since_age_ms.map(|age| format!(" ({})", milliseconds(age))).unwrap_or_default();
    match cluster {
        Cluster { quarantined: true, .. } => Toned::new("Quarantined", Tone::Bad),
        Cluster { bundle: false, .. } => Toned::new("NoTrustBundle", Tone::Bad),
        Cluster { connected: Some(true), .. } => Toned::new(format!("Connected{since}"), Tone::Good),
        Cluster { connected: Some(false), .. } => Toned::new(format!("Suspect{since}"), Tone::Bad),
        Cluster { connected: None, .. } => Toned::new("Unknown", Tone::Doubtful),
    }
}

/// Of the gateways that take connections, those whose last probe did not fail.
fn reachable(cluster: &Cluster) -> Toned {
    let taking: Vec<&Gateway> = cluster.gateways.iter().filter(|gateway| !gateway.draining).collect();
    let reachable = taking.iter().filter(|gateway| gateway.reachable == Some(true)).count();
    let probed = taking.iter().filter(|gateway| gateway.reachable.is_some()).count();
    let tone = match (reachable, probed) {
        _ if taking.is_empty() => return Toned::or_dash(""),
        (_, 0) => Tone::Doubtful,
        (0, _) => Tone::Bad,
        _ if reachable < taking.len() => Tone::Doubtful,
        _ => Tone::Good,
    };
    Toned::new(format!("{reachable}/{}", taking.len()), tone)
}

fn milliseconds(age: u64) -> String {
    brief(Duration::from_millis(age))
}
