//! The federation's plane on three etcd members and two replicas of each service.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use federation_store::lab::MEMBERS;

use super::{
    rows::{Injection, Row},
    stage::{self, Plan, hidden, timed, watch},
};
use crate::{
    demo::faults::LOADED,
    lab::{Lab, NAMESPACE, READY, federation::Storage, process::kill_all, wait},
    load::Load,
};

/// How long the load is watched with the plane dead.
const WATCH: Duration = Duration::from_millis(700);

pub(super) async fn play(plan: &Plan<'_>) -> anyhow::Result<()> {
    let rows = [Row::LeaderKilled, Row::FederationKilled];
    if !rows.iter().any(|row| plan.wants(*row)) {
        return Ok(());
    }
    let mut lab = stage::set(plan, "plane", Storage::Etcd).await?;
    let load = stage::load(&mut lab, "south", "east").await?;
    for row in rows.into_iter().filter(|row| plan.wants(*row)) {
        for number in 0..plan.injections {
            let injection = match row {
                Row::LeaderKilled => leader_killed(&mut lab, &load, number % 2 == 1).await,
                _ => everything_killed(&mut lab, &load).await,
            };
            plan.report.add(row, injection.with_context(|| format!("{}, injection {}", row.name(), number + 1))?);
        }
        plan.told(row)?;
    }
    lab.stop().await;
    Ok(())
}

/// West withdraws an export, or makes it again, right after the leader has died; none of the others is lost.
async fn leader_killed(lab: &mut Lab, load: &Load, exported: bool) -> anyhow::Result<Injection> {
    let etcd = lab.federation.etcd()?;
    let leader = etcd.leader().await?;
    let fault = Instant::now();
    etcd.kill(leader)?;
    let verb = if exported { "export" } else { "unexport" };
    lab.cluster("west")?.operator().isthmus(&[verb, &format!("{NAMESPACE}/{}", LOADED[0])]).await?;
    until_whole(lab, exported).await?;
    let time = fault.elapsed();
    let injection = timed(time, &load.ended_since(fault), |_| false);
    lab.federation.etcd()?.restart(leader)?;
    healthy(lab).await?;
    Ok(injection)
}

/// South sees everything that is exported, and nothing else.
async fn until_whole(lab: &mut Lab, with_wests_first: bool) -> anyhow::Result<()> {
    let expected = 2 * LOADED.len() - usize::from(!with_wests_first);
    let operator = lab.cluster("south")?.operator();
    wait::until("the change arrives, and nothing is lost", READY, || async {
        let imports: serde_json::Value = operator.json(&["get", "imports"]).await?;
        let found = crate::demo::story::imported_clusters(&imports);
        ensure!(found == expected, "{found} of {expected}");
        Ok(())
    })
    .await
}

/// The next leader must not be the last of two.
async fn healthy(lab: &Lab) -> anyhow::Result<()> {
    let etcd = lab.federation.etcd()?;
    wait::until("all members answer", READY, || async {
        let health = etcd.etcdctl(&["endpoint", "health"]).await?;
        ensure!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
        Ok(())
    })
    .await
}

async fn everything_killed(lab: &mut Lab, load: &Load) -> anyhow::Result<Injection> {
    let fault = Instant::now();
    kill_all(lab.federation.processes()).await?;
    (0..MEMBERS).try_for_each(|member| lab.federation.etcd()?.kill(member).map_err(anyhow::Error::from))?;
    watch(WATCH).await;
    let injection = hidden(load, fault, None, |_| true);
    // The programs come first, and wait for etcd.
    (0..MEMBERS).try_for_each(|member| lab.federation.etcd()?.restart(member).map_err(anyhow::Error::from))?;
    lab.federation.restart().await?;
    healthy(lab).await?;
    Ok(injection)
}
