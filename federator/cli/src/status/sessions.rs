//! `isthmus status --federator`: who is connected to which replica since when, and who lags.

mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin::{self, ANSWER_DEADLINE};
use crate::failure::Failure;
use crate::output::{Output, Tone, Toned, visible};
use crate::time::{at_millisecond, brief};
use wire::{Federation, Presence, Session, Sessions};

/// `isthmus status --federator … -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Nothing is wrong: the exit code is 0.
    healthy: bool,
    /// What is wrong, one sentence each.
    findings: Vec<String>,
    /// The replicas that answered.
    replicas: Vec<Replica>,
}

#[derive(Debug, Serialize)]
struct Replica {
    /// Where its admin listener was asked.
    address: String,
    #[serde(flatten)]
    federation: Federation,
    #[serde(flatten)]
    sessions: Sessions,
}

/// Asks every replica and prints what they say; whether all is as it should be.
pub(super) async fn show(addresses: &[String], output: &Output) -> Result<bool, Failure> {
    let (mut replicas, mut failures) = (Vec::new(), Vec::new());
    for address in addresses {
        match replica(address).await {
            Ok(replica) => replicas.push(replica),
            Err(failure) => failures.push(failure),
        }
    }
    if replicas.is_empty()
        && let Some(failure) = failures.pop()
    {
        return Err(failure);
    }
    let mut findings: Vec<_> = failures.iter().map(ToString::to_string).collect();
    findings.extend(self::findings(&replicas, Timestamp::now()));
    let report = Report { healthy: findings.is_empty(), findings, replicas };
    output.show(&report, |output| page(&report, output))?;
    Ok(report.healthy)
}

async fn replica(address: &str) -> Result<Replica, Failure> {
    let federation = ask(address, "/debug/federation").await?;
    let sessions = ask(address, "/debug/sessions").await?;
    Ok(Replica { address: address.to_owned(), federation, sessions })
}

async fn ask<T: DeserializeOwned>(address: &str, path: &str) -> Result<T, Failure> {
    let broken = |reason: String| Failure::Federator { address: address.to_owned(), reason };
    let request = Request::get(path).header(header::HOST, "isthmus").body(Full::<Bytes>::default());
    let request = request.map_err(|error| broken(error.to_string()))?;
    let asked = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| Failure::NoFederator { address: address.to_owned(), source })?;
        admin::exchange(stream, request).await.map_err(&broken)
    };
    let (status, body) = timeout(ANSWER_DEADLINE, asked)
        .await
        .map_err(|_| broken(format!("no answer within {}", brief(ANSWER_DEADLINE))))??;
    if !status.is_success() {
        return Err(broken(admin::reason(status, &body)));
    }
    serde_json::from_slice(&body).map_err(|error| broken(format!("the answer is not understood: {error}")))
}

/// How a session is doing, worst first.
fn standing(session: &Session, late_ms: u64) -> Toned {
    let late = session.unacknowledged_ms > late_ms;
    match session {
        // It does not even read.
        Session { answers_waiting: 1.., .. } if late => Toned::new("Stuck", Tone::Bad),
        _ if late => Toned::new("Slow", Tone::Bad),
        Session { snapshot: true, .. } => Toned::new("Snapshot", Tone::Doubtful),
        _ => Toned::new("InStep", Tone::Good),
    }
}

/// One sentence for each thing that is wrong.
fn findings(replicas: &[Replica], now: Timestamp) -> Vec<String> {
    let mut findings = Vec::new();
    for replica in replicas {
        let Replica { federation, sessions, .. } = replica;
        for session in sessions.sessions.iter().filter(|it| it.unacknowledged_ms > sessions.late_ms) {
            let Session { cluster, replica, behind, .. } = session;
            let owed = brief(Duration::from_millis(session.unacknowledged_ms));
            findings.push(format!(
                "cluster {cluster}: {replica} at {} has not acknowledged for {owed} what it was told, and is {behind} \
                 revisions behind",
                federation.replica
            ));
        }
    }
    // Every replica says the same of these; whoever has seen most says it last.
    let newest = replicas.iter().max_by_key(|replica| replica.federation.revision);
    for member in newest.iter().flat_map(|replica| &replica.federation.members) {
        let seen = newest.and_then(|it| it.federation.clusters.iter().find(|seen| seen.cluster == *member));
        match seen {
            Some(Presence { connected: true, .. }) => {}
            Some(lost) => {
                let since = since(lost.since_ms, now);
                findings.push(format!("cluster {member}: no session for {since}, the last was at {}", lost.replica));
            }
            None => {
                findings.push(format!("cluster {member}: a member that has not been seen since its replica started"))
            }
        }
    }
    let histories: BTreeMap<_, _> = replicas.iter().map(|it| (&it.federation.incarnation, &it.address)).collect();
    if histories.len() > 1 {
        findings.push("the replicas serve different histories of the store".to_owned());
    }
    findings
}

fn page(report: &Report, output: &Output) -> String {
    let now = Timestamp::now();
    let mut page = String::new();
    for replica in &report.replicas {
        let Federation { replica: name, revision, records, members, clusters, .. } = &replica.federation;
        let connected = clusters.iter().filter(|cluster| cluster.connected).count();
        page.push_str(&format!(
            "{} at {}: revision {revision}, {records} records, {connected} of {} members connected\n",
            visible(name),
            replica.address,
            members.len()
        ));
        if !replica.sessions.sessions.is_empty() {
            page.push_str(&table(&replica.sessions, now, output));
        }
        page.push('\n');
    }
    if report.healthy {
        page.push_str(&format!("{}\n", output.paint(&Toned::new("healthy", Tone::Good))));
    } else {
        page.push_str(&format!("{}\n", output.paint(&Toned::new("not healthy:", Tone::Bad))));
        report.findings.iter().for_each(|finding| page.push_str(&format!("  {}\n", visible(finding))));
    }
    page
}

/// One line for each session.
fn table(sessions: &Sessions, now: Timestamp, output: &Output) -> String {
    let rows = sessions.sessions.iter().map(|session| {
        let owed = session.unacknowledged_ms;
        vec![
            session.cluster.clone().into(),
            Toned::or_dash(session.replica.clone()),
            if session.publisher { "publishes" } else { "reads" }.into(),
            since(session.since_ms, now).into(),
            if session.resumed { "resumed" } else { "snapshot" }.into(),
            session.applied_revision.to_string().into(),
            session.behind.to_string().into(),
            Toned::or_dash(if owed > 0 { brief(Duration::from_millis(owed)) } else { String::new() }),
            standing(session, sessions.late_ms),
        ]
    });
    let header = ["CLUSTER", "CONTROL-PLANE", "ROLE", "SINCE", "BEGAN", "APPLIED", "BEHIND", "OWES", "STATE"];
    output.table(&header, rows.collect())
}

fn since(milliseconds: i64, now: Timestamp) -> String {
    let Some(at) = at_millisecond(milliseconds) else { return "-".to_owned() };
    // A clock that is ahead of this one.
    brief(Duration::try_from(now.duration_since(at)).unwrap_or_default())
}
