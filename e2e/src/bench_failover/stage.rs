//! What the faults are played on: clusters, a load on them, and what came of the load.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{
    report::Report,
    rows::{Injection, Row},
};
use crate::{
    demo::{faults::LOADED, story::imported_clusters},
    lab::{
        ClusterDescription, Lab, NAMESPACE, READY, ServiceDescription, binaries::Binaries, federation::Storage, wait,
    },
    load::{Impact, Kind, Load, Sample},
    shop::Role,
};

/// How often, and where results go.
pub(super) struct Plan<'a> {
    pub(super) injections: usize,
    pub(super) rows: &'a [Row],
    pub(super) binaries: &'a Binaries,
    pub(super) directory: PathBuf,
    pub(super) report: &'a Report,
}

impl Plan<'_> {
    pub(super) fn wants(&self, row: Row) -> bool {
        self.rows.contains(&row)
    }
}

/// So many requests in a row from one place: the load is there.
const SETTLED: usize = 20;
/// A page of the load is answered by its services within this time after a repair.
pub(super) const RETURN: Duration = Duration::from_secs(20);

/// The two services that the load calls, with so many pods each.
fn services(replicas: u8) -> Vec<ServiceDescription> {
    let service = |name, role, port, target_port, port_name| ServiceDescription {
        name,
        role,
        port,
        target_port,
        port_name,
        replicas,
    };
    vec![
        service(LOADED[0], Role::Frontend, 80, 8080, "http"),
        service(LOADED[1], Role::Productcatalogservice, 3550, 3550, "grpc"),
    ]
}

/// East with two pods of each service, west in another region with one, and south that only calls.
fn clusters() -> Vec<ClusterDescription> {
    let cluster = |name, region, gateways, services| ClusterDescription {
        name,
        region,
        zone: "a",
        gateways,
        egress_restricted: false,
        services,
        collector: None,
    };
    vec![
        cluster("east", "eu", 2, services(2)),
        cluster("west", "us", 2, services(1)),
        cluster("south", "eu", 1, Vec::new()),
    ]
}

/// Starts the federation and its clusters, and waits until everybody knows every service.
pub(super) async fn set(plan: &Plan<'_>, stage: &str, storage: Storage) -> anyhow::Result<Lab> {
    let mut lab = Lab::start_on(&plan.directory.join(stage), plan.binaries.clone(), storage).await?;
    lab.add(clusters()).await?;
    for name in ["east", "west"] {
        let operator = lab.cluster(name)?.operator();
        for service in LOADED {
            operator.isthmus(&["export", &format!("{NAMESPACE}/{service}")]).await?;
        }
    }
    for cluster in &lab.clusters {
        let operator = cluster.operator();
        wait::until("every import is there", READY, || async {
            let imports: serde_json::Value = operator.json(&["get", "imports"]).await?;
            ensure!(imported_clusters(&imports) == 2 * LOADED.len(), "{imports}");
            Ok(())
        })
        .await?;
    }
    Ok(lab)
}

/// A load from a cluster's client, answered where it should be.
pub(super) async fn load(lab: &mut Lab, from: &str, by: &str) -> anyhow::Result<Load> {
    let load = Load::start(lab.cluster(from)?.client_proxy(), NAMESPACE)?;
    until_answered_by(&load, by, Instant::now()).await?;
    Ok(load)
}

/// When the load began to be answered by a cluster alone, counted from `since`; with the failures on the way.
pub(super) async fn until_answered_by(load: &Load, cluster: &str, since: Instant) -> anyhow::Result<Instant> {
    wait::until(&format!("{cluster} answers"), RETURN, || async {
        let mut samples = load.ended_since(since);
        samples.sort_unstable_by_key(|sample| sample.ended);
        let tail = samples.len().checked_sub(SETTLED).context("too few answers")?;
        let tail = &samples[tail..];
        let elsewhere = tail.iter().find(|sample| sample.cluster() != Some(cluster));
        ensure!(elsewhere.is_none(), "{:?}", elsewhere.map(|sample| &sample.outcome));
        Ok(tail[0].ended)
    })
    .await
}

/// Lets the load run on.
pub(super) async fn watch(time: Duration) {
    tokio::time::sleep(time).await;
}

/// An injection after which only some may answer: how long until every request was prompt. `gone` is when those that were
/// killed no longer ran; without, nobody who answers calls was, and no call may be interrupted.
pub(super) fn hidden(load: &Load, fault: Instant, gone: Option<Instant>, alive: impl Fn(&str) -> bool) -> Injection {
    let impact = Impact::of(&load.ended_since(fault), fault, gone.unwrap_or(fault), alive);
    let mut injection = Injection {
        time: impact.time_to_move,
        requests: impact.requests,
        failed: impact.failed,
        interrupted: impact.interrupted,
    };
    if gone.is_none() {
        let under_way = std::mem::take(&mut injection.interrupted);
        injection.failed.extend(std::iter::repeat_n("a call that was under way".to_owned(), under_way));
    }
    injection
}

/// An injection whose time is measured otherwise.
pub(super) fn timed(time: Duration, samples: &[Sample], interrupted: impl Fn(&Sample) -> bool) -> Injection {
    let mut injection = Injection { time, requests: samples.len(), failed: Vec::new(), interrupted: 0 };
    for sample in samples {
        match &sample.outcome {
            Err(_) if sample.kind == Kind::Grpc && interrupted(sample) => injection.interrupted += 1,
            Err(error) => injection.failed.push(error.clone()),
            Ok(_) => {}
        }
    }
    injection
}
