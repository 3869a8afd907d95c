//! The federation's plane on three etcd members and two replicas of each service, dying part by part.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use e2e::client;
use e2e::demo::faults::Faults;
use e2e::demo::story::imported_clusters;
use e2e::lab::federation::REPLICAS;
use e2e::lab::shop_federation::shop_federation;
use e2e::lab::{Lab, READY, wait};
use federation_store::lab::MEMBERS;

use crate::stage::Stage;

/// How long the load is watched after something died.
const WATCH: Duration = Duration::from_secs(3);
/// In what time a change reaches another cluster although etcd's leader has just died.
const PROPAGATION: Duration = Duration::from_secs(3);
/// The export that comes and goes; only north has it.
const CHANGING: &str = "shop/checkoutservice";

#[tokio::test(flavor = "multi_thread")]
async fn callers_notice_nothing_and_no_export_is_lost_when_every_part_of_the_plane_dies() {
    let mut stage = Stage::set_on_etcd().await;
    let mut faults = stage.faults();
    faults.warm_up().await.unwrap();
    let begun = Instant::now();
    for replica in 0..usize::from(REPLICAS) {
        faults.lab.federation.federators[replica].kill().await.unwrap();
        watched(&faults).await;
        faults.lab.federation.federators[replica].restart().unwrap();
        faults.lab.federation.federators[replica].ready(READY).await.unwrap();
        faults.lab.federation.trust_bundles[replica].kill().await.unwrap();
        watched(&faults).await;
        faults.lab.federation.trust_bundles[replica].restart().unwrap();
        faults.lab.federation.trust_bundles[replica].ready(READY).await.unwrap();
    }
    for member in 0..MEMBERS {
        let etcd = faults.lab.federation.etcd().unwrap();
        etcd.kill(member).unwrap();
        watched(&faults).await;
        etcd.restart(member).unwrap();
    }

    faults.lab.federation.kill().await.unwrap();
    for member in 0..MEMBERS {
        faults.lab.federation.etcd().unwrap().kill(member).unwrap();
    }
    watched(&faults).await;
    // The programs come first, and wait for etcd.
    faults.lab.federation.processes().for_each(|process| process.restart().unwrap());
    for member in 0..MEMBERS {
        faults.lab.federation.etcd().unwrap().restart(member).unwrap();
    }
    for process in faults.lab.federation.processes() {
        process.ready(READY).await.unwrap();
    }
    all_connected(faults.lab).await;
    for replica in 0..REPLICAS {
        assert_eq!(stored_exports(faults.lab, replica).await.unwrap(), exports(), "at federator {replica}");
    }
    watched(&faults).await;
    let samples = faults.load.since(begun);
    assert!(samples.len() > 3000, "only {} requests", samples.len());
    unharmed(&faults, begun);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_go_on_within_three_seconds_when_the_leader_of_etcd_is_killed() {
    let mut stage = Stage::set_on_etcd().await;
    let lab = &mut stage.lab;
    let undisturbed = change(lab, false, Instant::now()).await;
    change(lab, true, Instant::now()).await;
    for round in 0..3 {
        let leader = lab.federation.etcd().unwrap().leader().await.unwrap();
        lab.federation.etcd().unwrap().kill(leader).unwrap();
        let took = change(lab, round % 2 == 1, Instant::now()).await;
        assert!(took < PROPAGATION, "round {round}: {took:?}, undisturbed {undisturbed:?}");
        lab.federation.etcd().unwrap().restart(leader).unwrap();
        // The next leader must not be the last of two.
        let endpoint = lab.federation.etcd().unwrap();
        wait::until("all members answer", READY, || async {
            let health = endpoint.etcdctl(&["endpoint", "health"]).await?;
            ensure!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
            Ok(())
        })
        .await
        .unwrap();
    }
    change(lab, true, Instant::now()).await;
    for replica in 0..REPLICAS {
        wait::until("every export is stored", READY, || async {
            let stored = stored_exports(lab, replica).await?;
            ensure!(stored == exports(), "{stored} exports at federator {replica}");
            Ok(())
        })
        .await
        .unwrap();
    }
    imports_are_whole(lab).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_replica_that_dies_resume_at_the_other_without_a_snapshot() {
    let mut stage = Stage::set_on_etcd().await;
    let lab = &mut stage.lab;
    // Each replica watches once, whatever it serves.
    let mut watches = 0;
    for member in 0..MEMBERS {
        watches += lab.federation.etcd().unwrap().watchers(member).await.unwrap();
    }
    assert_eq!(watches, 2 * usize::from(REPLICAS), "etcd's watches are as many as replicas");

    let admin = (lab.federation.federator_address(0), 15020).into();
    let metrics = client::get(admin, "/metrics").await.unwrap().body;
    let metric = |name: &str| {
        let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("isthmus_federator_{name} ")));
        value.unwrap_or_else(|| panic!("no {name}")).parse::<f64>().unwrap()
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let silence = now - metric("store_watch_heard_timestamp_seconds");
    assert!(silence < 5.0, "the watch is silent for {silence} s");
    assert!(metric("store_revision") > 0.0 && metric("store_watches_total") >= 1.0);

    let mut moved = 0;
    for (dying, other) in [(0, 1), (1, 0)] {
        let before = opened(lab, other);
        let there = sessions(lab, u8::try_from(dying).unwrap()).await.unwrap();
        lab.federation.federators[dying].kill().await.unwrap();
        wait::until("its sessions are at the other", READY, || async {
            let here = sessions(lab, u8::try_from(other).unwrap()).await?;
            ensure!(here == lab.clusters.len(), "{here}");
            Ok(())
        })
        .await
        .unwrap();
        let opened = opened(lab, other).split_off(before.len());
        assert!(opened.len() >= there, "{opened:?}");
        assert!(opened.iter().all(|line| line.contains("resumed=true")), "{opened:?}");
        moved += there;
        lab.federation.federators[dying].restart().unwrap();
        lab.federation.federators[dying].ready(READY).await.unwrap();
    }
    assert!(moved >= lab.clusters.len(), "both died, so every session moved at least once: {moved}");
    shown_to_the_operator(lab).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_rolls_nobodys_exports_back() {
    let mut stage = Stage::set_on_etcd().await;
    let faults = stage.faults();
    let begun = Instant::now();
    let file = faults.lab.cluster("east").unwrap().directory().join("etcd-snapshot.db");
    faults.lab.federation.etcd().unwrap().save(&file).await.unwrap();
    let incarnation = debug(faults.lab, 0).await.unwrap()["incarnation"].clone();
    change(faults.lab, false, Instant::now()).await;

    // The backup has the export that was withdrawn since.
    faults.lab.federation.etcd.as_mut().unwrap().restore(&file, true).await.unwrap();
    let old = wait::until("the programs end by themselves", READY, || {
        let running =
            faults.lab.federation.processes().filter_map(|process| process.runs().then(|| process.name().to_owned()));
        let running: Vec<_> = running.collect();
        async move {
            ensure!(running.is_empty(), "{running:?} run on");
            Ok(())
        }
    });
    old.await.unwrap();
    faults.lab.federation.restart().await.unwrap();
    assert_ne!(debug(faults.lab, 0).await.unwrap()["incarnation"], incarnation, "a new history has a new name");
    all_connected(faults.lab).await;
    for replica in 0..REPLICAS {
        wait::until("the withdrawal is stored again", READY, || async {
            let stored = stored_exports(faults.lab, replica).await?;
            ensure!(stored == exports() - 1, "{stored} exports at federator {replica}");
            Ok(())
        })
        .await
        .unwrap();
    }
    let imports =
        faults.lab.cluster("east").unwrap().operator().isthmus(&["get", "imports", "-o", "json"]).await.unwrap();
    assert!(!imports.contains("checkoutservice"), "{imports}");
    change(faults.lab, true, Instant::now()).await;
    imports_are_whole(faults.lab).await;
    unharmed(&faults, begun);
    stage.end().await;
}

/// How many exports there are when all is well.
fn exports() -> usize {
    shop_federation().iter().map(|cluster| cluster.services.len()).sum()
}

/// Lets the load run on for a while; the imports of every cluster must stay whole.
async fn watched(faults: &Faults<'_>) {
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        imports_are_whole(faults.lab).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn imports_are_whole(lab: &Lab) {
    for cluster in &lab.clusters {
        let imports: serde_json::Value = cluster.operator().json(&["get", "imports"]).await.unwrap();
        assert_eq!(imported_clusters(&imports), exports(), "in {}: {imports}", cluster.name());
    }
}

/// No request failed since.
fn unharmed(faults: &Faults<'_>, since: Instant) {
    let samples = faults.load.since(since);
    let failed: Vec<_> = samples.iter().filter_map(|sample| sample.outcome.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), samples.len(), failed.first());
}

/// Exports or withdraws, and says how long after `since` another cluster saw it.
async fn change(lab: &mut Lab, exported: bool, since: Instant) -> Duration {
    let verb = if exported { "export" } else { "unexport" };
    lab.cluster("north").unwrap().operator().isthmus(&[verb, CHANGING]).await.unwrap();
    let east = lab.cluster("east").unwrap().operator();
    wait::until("the change arrives", READY, || async {
        let imports = east.isthmus(&["get", "imports", "-o", "json"]).await?;
        ensure!(imports.contains("checkoutservice") == exported, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    since.elapsed()
}

async fn debug(lab: &Lab, replica: u8) -> anyhow::Result<serde_json::Value> {
    let address = lab.federation.federator_address(replica);
    let page = client::get((address, 15020).into(), "/debug/federation").await?;
    Ok(serde_json::from_str(&page.body)?)
}

async fn stored_exports(lab: &Lab, replica: u8) -> anyhow::Result<usize> {
    let page = debug(lab, replica).await?;
    let usage = page["usage"].as_array().into_iter().flatten();
    Ok(usage.filter_map(|usage| usage["exports"].as_u64()).sum::<u64>().try_into()?)
}

/// `isthmus status` finds every cluster's session at some replica, in step.
async fn shown_to_the_operator(lab: &Lab) {
    let addresses = (0..REPLICAS).map(|replica| format!("{}:15020", lab.federation.federator_address(replica)));
    let addresses: Vec<_> = addresses.collect();
    let named = addresses.iter().flat_map(|address| ["--federator", address.as_str()]);
    let arguments: Vec<&str> = ["status", "-o", "json"].into_iter().chain(named).collect();
    let operator = lab.clusters[0].operator();
    wait::until("the command shows every session", READY, || async {
        let report: serde_json::Value = serde_json::from_str(&operator.isthmus(&arguments).await?)?;
        let replicas = report["replicas"].as_array().into_iter().flatten();
        let sessions = replicas.flat_map(|replica| replica["sessions"].as_array().into_iter().flatten());
        let since = |session: &serde_json::Value| session["sinceMs"].as_u64().is_some_and(|since| since > 0);
        let publishers = sessions.filter(|session| session["publisher"] == true && since(session)).count();
        ensure!(report["healthy"] == true && publishers == lab.clusters.len(), "{report}");
        Ok(())
    })
    .await
    .unwrap();
}

/// How many clusters have a session at a replica.
async fn sessions(lab: &Lab, replica: u8) -> anyhow::Result<usize> {
    let address = lab.federation.federator_address(replica);
    let page = client::get((address, 15020).into(), "/debug/sessions").await?;
    let page: serde_json::Value = serde_json::from_str(&page.body)?;
    Ok(page["sessions"].as_array().map_or(0, Vec::len))
}

async fn all_connected(lab: &Lab) {
    wait::until("every cluster is connected", READY, || async {
        let mut open = 0;
        for replica in 0..REPLICAS {
            open += sessions(lab, replica).await?;
        }
        ensure!(open == lab.clusters.len(), "{open} sessions");
        Ok(())
    })
    .await
    .unwrap();
}

/// What a federator's log says of the sessions that were opened there.
fn opened(lab: &Lab, replica: usize) -> Vec<String> {
    let log = std::fs::read_to_string(lab.federation.federators[replica].log()).unwrap();
    log.lines().filter(|line| line.contains("session opened")).map(str::to_owned).collect()
}
