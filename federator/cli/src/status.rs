//! `isthmus status`: membership, connections, and every other cluster as measured from here.

mod health;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::admin::Admin;
use crate::admin::wire::{Cluster, Gateway, Link, Status};
use crate::failure::Failure;
use crate::output::{Output, Tone, Toned};
use crate::time::{brief, round_trip, to_the_second};

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
pub(crate) async fn status(admin: &Admin, output: &Output) -> Result<bool, Failure> {
    let mut status = admin.status().await?;
    status.clusters.sort_by(|a, b| a.name.cmp(&b.name));
    let findings = health::findings(&status);
    let report = Report { healthy: findings.is_empty(), findings: &findings, status: &status };
    output.show(&report, |output| page(&report, Timestamp::now(), output))?;
    Ok(report.healthy)
}

fn page(report: &Report<'_>, now: Timestamp, output: &Output) -> String {
    let status = report.status;
    let mut page = String::new();
    let mut line = |label: &str, value: &Toned| page.push_str(&format!("{label:<14} {}\n", output.paint(value)));
    line("Cluster", &format!("{} of federation {}", status.cluster, status.federation).into());
    line("Trust domain", &Toned::or_dash(status.trust_domain.clone()));
    line("Membership", &membership(status, now));
    line("Trust-bundle", &link(&status.trust_bundle));
    line("Federator", &link(&status.federator));
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
        report.findings.iter().for_each(|finding| page.push_str(&format!("  {}\n", crate::output::visible(finding))));
    }
    page
}

fn membership(status: &Status, now: Timestamp) -> Toned {
    let membership = &status.membership;
    if !membership.joined {
        return Toned::new("not joined: `isthmus join` hands over a token", Tone::Bad);
    }
    let mut text = "joined".to_owned();
    if let Some(generation) = membership.generation {
        text.push_str(&format!(", generation {generation}"));
    }
    let Some(until) = membership.certificate_not_after else { return Toned::new(text, Tone::Good) };
    let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
    let tone = if left.is_zero() { Tone::Bad } else { Tone::Good };
    Toned::new(format!("{text}, certificate until {} (in {})", to_the_second(until), brief(left)), tone)
}

fn link(link: &Link) -> Toned {
    let age = link.age_seconds.map(|age| format!(", last word {} ago", brief(seconds(age)))).unwrap_or_default();
    match (link.connected, link.synced) {
        (true, true) => Toned::new(format!("connected{age}"), Tone::Good),
        (true, false) => Toned::new(format!("connected, the first state is still coming{age}"), Tone::Doubtful),
        (false, _) => {
            let why = link.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            Toned::new(format!("not connected{age}{why}"), Tone::Bad)
        }
    }
}

/// Clusters as measured from here, one line each.
pub(crate) fn cluster_table(clusters: &[Cluster], output: &Output) -> String {
    let rows = clusters.iter().map(|cluster| {
        let best = cluster.gateways.iter().filter_map(|gateway| gateway.round_trip_ms).min_by(f64::total_cmp);
        let probed = cluster.gateways.iter().filter_map(|gateway| gateway.probe_age_seconds).min_by(f64::total_cmp);
        let alarms = if cluster.alarms.is_empty() { Tone::Faint } else { Tone::Bad };
        vec![
            cluster.name.clone().into(),
            state(cluster),
            reachable(cluster),
            Toned::or_dash(best.map(|it| round_trip(seconds(it / 1_000.0))).unwrap_or_default()),
            Toned::or_dash(probed.map(|it| brief(seconds(it))).unwrap_or_default()),
            Toned::or_dash(cluster.age_seconds.map(|it| brief(seconds(it))).unwrap_or_default()),
            cluster.exports.to_string().into(),
            Toned::new(if cluster.alarms.is_empty() { "-".to_owned() } else { cluster.alarms.join("; ") }, alarms),
        ]
    });
    let header = ["CLUSTER", "STATE", "GATEWAYS REACHABLE", "RTT", "PROBED", "UPDATED", "EXPORTS", "ALARMS"];
    output.table(&header, rows.collect())
}

fn state(cluster: &Cluster) -> Toned {
    match cluster {
        Cluster { quarantined: true, .. } => Toned::new("Quarantined", Tone::Bad),
        Cluster { local: true, .. } => Toned::new("Local", Tone::Good),
        Cluster { bundle: false, .. } => Toned::new("NoTrustBundle", Tone::Bad),
        Cluster { connected: Some(true), .. } => Toned::new("Connected", Tone::Good),
        Cluster { connected: Some(false), .. } => Toned::new("Suspect", Tone::Bad),
        Cluster { connected: None, .. } => Toned::new("Unknown", Tone::Doubtful),
    }
}

fn reachable(cluster: &Cluster) -> Toned {
    let taking: Vec<&Gateway> = cluster.gateways.iter().filter(|gateway| !gateway.draining).collect();
    let reachable = taking.iter().filter(|gateway| gateway.reachable == Some(true)).count();
    let probed = taking.iter().filter(|gateway| gateway.reachable.is_some()).count();
    if taking.is_empty() {
        return Toned::or_dash("");
    }
    let tone = match (reachable, probed) {
        (_, 0) => Tone::Doubtful,
        (0, _) => Tone::Bad,
        _ if reachable < taking.len() => Tone::Doubtful,
        _ => Tone::Good,
    };
    Toned::new(format!("{reachable}/{}", taking.len()), tone)
}

/// What another process says may be no number of seconds.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}
