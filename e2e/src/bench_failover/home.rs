//! The rows that need nothing but processes: servers, gateways, readiness, control-planes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http::{HeaderMap, Method};

use super::{
    rows::{Injection, Row},
    stage::{self, Plan, RETURN, hidden, timed, until_answered_by, watch},
};
use crate::{
    client,
    demo::faults::LOADED,
    lab::{Lab, NAMESPACE, READY, federation::Storage, process::kill_all, wait},
    load::Load,
};

/// How long the load is watched after a process was killed.
const WATCH: Duration = Duration::from_millis(700);
/// From a replacement's readiness to the next fault.
const REST: Duration = Duration::from_millis(300);
/// How long a gateway waits for its sessions, which leave once they have heard that it drains.
const DRAIN: &str = "drainDeadline: 5s";
/// Between two looks at a sidecar that starts.
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn play(plan: &Plan<'_>) -> anyhow::Result<()> {
    let rows = [Row::ServerKilled, Row::Unready, Row::GatewayKilled, Row::GatewayReplaced, Row::ControlPlaneKilled];
    if !rows.iter().any(|row| plan.wants(*row)) {
        return Ok(());
    }
    let mut lab = stage::set(plan, "home", Storage::Embedded).await?;
    for row in rows.into_iter().filter(|row| plan.wants(*row)) {
        // South has no pods of its own: it goes through gateways.
        let from = if matches!(row, Row::ServerKilled | Row::Unready) { "east" } else { "south" };
        if row == Row::GatewayReplaced {
            drain_soon(&mut lab).await?;
        }
        if row == Row::ControlPlaneKilled {
            remembered(&mut lab).await?;
        }
        let load = stage::load(&mut lab, from, "east").await?;
        for number in 0..plan.injections {
            let injection = match row {
                Row::ServerKilled => server_killed(&mut lab, &load, number).await,
                Row::Unready => unready(&mut lab, &load).await,
                Row::GatewayKilled => gateway_killed(&mut lab, &load, number).await,
                Row::GatewayReplaced => gateway_replaced(&mut lab, &load, number).await,
                _ => control_planes_killed(&mut lab, &load).await,
            };
            let injection = injection.with_context(|| format!("{}, injection {}", row.name(), number + 1))?;
            plan.report.add(row, injection);
        }
        plan.told(row)?;
    }
    lab.stop().await;
    Ok(())
}

/// The application of one of two pods of each service: their sidecars live and find its port closed.
async fn server_killed(lab: &mut Lab, load: &Load, number: usize) -> anyhow::Result<Injection> {
    let east = lab.cluster("east")?;
    let fault = Instant::now();
    let doomed = east.pods.iter_mut().filter(|(service, _)| LOADED.contains(&service.as_str()));
    kill_all(doomed.filter_map(|(_, pods)| pods.get_mut(number % 2)?.application.as_mut())).await?;
    let gone = Instant::now();
    watch(WATCH).await;
    let dead = LOADED.map(|service| format!("east/{service}-{}", number % 2));
    let injection = hidden(load, fault, Some(gone), |instance| !dead.iter().any(|dead| dead == instance));
    for service in LOADED {
        let pod = east.pods_of(service)?.get_mut(number % 2).context("there are two pods")?;
        pod.application.as_mut().context("a pod has an application")?.restart()?;
    }
    // Both serve again: the next one to die must not be the last one.
    wait::until("both pods serve", RETURN, || async {
        let recent = Instant::now().checked_sub(REST).unwrap_or(gone);
        let samples = load.ended_since(recent);
        let serves = |dead: &String| samples.iter().any(|sample| sample.outcome.as_ref() == Ok(dead));
        ensure!(dead.iter().all(serves), "not yet");
        Ok(())
    })
    .await?;
    Ok(injection)
}

async fn unready(lab: &mut Lab, load: &Load) -> anyhow::Result<Injection> {
    let east = lab.cluster("east")?;
    let fault = Instant::now();
    LOADED.iter().try_for_each(|service| east.write_endpoints(service, false))?;
    watch(WATCH).await;
    let samples = load.ended_since(fault);
    let last = samples.iter().filter(|sample| sample.cluster() == Some("east")).map(|sample| sample.started).max();
    let elsewhere = samples.iter().filter(|sample| sample.cluster() == Some("west")).count();
    ensure!(elsewhere > 0, "nothing has moved within {WATCH:?}");
    let time = last.map_or(Duration::ZERO, |last| last.saturating_duration_since(fault));
    let injection = timed(time, &samples, |_| false);
    let back = Instant::now();
    LOADED.iter().try_for_each(|service| east.write_endpoints(service, true))?;
    until_answered_by(load, "east", back).await?;
    Ok(injection)
}

async fn gateway_killed(lab: &mut Lab, load: &Load, number: usize) -> anyhow::Result<Injection> {
    let gateway = &mut lab.cluster("east")?.gateways[number % 2];
    let fault = Instant::now();
    gateway.kill().await?;
    let gone = Instant::now();
    watch(WATCH).await;
    let injection = hidden(load, fault, Some(gone), |_| true);
    gateway.restart()?;
    gateway.ready(READY).await?;
    watch(REST).await;
    Ok(injection)
}

/// One of the two is told to go, and the next one comes when it has gone.
async fn gateway_replaced(lab: &mut Lab, load: &Load, number: usize) -> anyhow::Result<Injection> {
    let gateway = &mut lab.cluster("east")?.gateways[number % 2];
    let fault = Instant::now();
    let status = gateway.stop().await.context("the gateway did not run")?;
    ensure!(status.success(), "the gateway ended with {status}");
    gateway.restart()?;
    gateway.ready(READY).await?;
    watch(REST).await;
    Ok(hidden(load, fault, None, |_| true))
}

async fn drain_soon(lab: &mut Lab) -> anyhow::Result<()> {
    let east = lab.cluster("east")?;
    for number in 1..=east.gateways.len() {
        let path = east.directory().join(format!("config/gw-{number}.yaml"));
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.starts_with("runtime: {"), "{}: {text}", path.display());
        std::fs::write(&path, text.replacen("runtime: {", &format!("runtime: {{{DRAIN}, "), 1))?;
    }
    for gateway in &mut east.gateways {
        gateway.kill().await?;
        gateway.restart()?;
        gateway.ready(READY).await?;
    }
    Ok(())
}

fn page() -> String {
    format!("http://{}.{NAMESPACE}.svc.clusterset.local/healthz", LOADED[0])
}

/// West's client uses the service, and has it on disk.
async fn remembered(lab: &mut Lab) -> anyhow::Result<()> {
    let west = lab.cluster("west")?;
    let (proxy, state) = (west.client_proxy(), west.directory().join("state/sidecar-client/state"));
    wait::until("west's client remembers the service", READY, || async {
        client::by_proxy(proxy, Method::GET, &page(), &HeaderMap::new()).await?;
        let known = std::fs::read(&state)?;
        ensure!(known.windows(LOADED[0].len()).any(|window| window == LOADED[0].as_bytes()), "not yet");
        Ok(())
    })
    .await
}

/// All of them die; the sidecar of west's client dies too, and has nobody to ask.
async fn control_planes_killed(lab: &mut Lab, load: &Load) -> anyhow::Result<Injection> {
    let fault = Instant::now();
    kill_all(lab.clusters.iter_mut().map(|cluster| &mut cluster.control_plane)).await?;
    let west = lab.cluster("west")?;
    let proxy = west.client_proxy();
    let sidecar = west.pods_of("client")?.first_mut().and_then(|pod| pod.sidecar.as_mut()).context("no client")?;
    sidecar.kill().await?;
    let restarted = Instant::now();
    sidecar.restart()?;
    let time = loop {
        match client::by_proxy(proxy, Method::GET, &page(), &HeaderMap::new()).await {
            Ok(answer) if answer.status.is_success() => break restarted.elapsed(),
            _ if restarted.elapsed() > READY => anyhow::bail!("the restarted sidecar does not serve"),
            _ => tokio::time::sleep(LOOK).await,
        }
    };
    watch(REST).await;
    let injection = timed(time, &load.ended_since(fault), |_| false);
    for cluster in &mut lab.clusters {
        cluster.control_plane.restart()?;
    }
    for cluster in &mut lab.clusters {
        cluster.control_plane.ready(READY).await?;
    }
    Ok(injection)
}
