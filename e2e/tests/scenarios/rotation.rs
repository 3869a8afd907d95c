//! Every key is replaced twice while clusters call each other, and nobody notices.

use std::time::Instant;

use anyhow::ensure;
use e2e::lab::federation::FederationOperator;
use e2e::lab::operator::Operator;
use e2e::lab::wait;
use e2e::ticks::lab::{Settings, TickingLab};
use serde_json::Value;
use std::time::Duration;

use crate::ONE_AT_A_TIME;

/// Short lives, so that a rotation takes seconds and not days.
pub(crate) const QUICK: Settings<'_> = Settings {
    control_plane: "svidLifetime: 8s\nrotation: {refreshHint: 1s, skew: 1s}\n",
    trust_bundle: "certificateLifetime: 20s\nrefreshHint: 1s\nclockSkew: 1s\n",
    binaries: None,
};
/// How long a rotation of a root may take with these: three hints, the longest life, the skew, and acknowledgements.
pub(crate) const ROTATION: Duration = Duration::from_secs(60);

/// After an emergency everybody has another identity within this time.
const RECOVERY: Duration = Duration::from_secs(20);

async fn phase(operator: &Operator, key: &str) -> anyhow::Result<String> {
    let status: Value = operator.json(&["rotate", "status"]).await?;
    let rotations = status["rotations"].as_array().cloned().unwrap_or_default();
    let found = rotations.iter().find(|rotation| rotation["key"] == key).cloned().unwrap_or_default();
    ensure!(found["problem"].is_null(), "{found}");
    Ok(found["phase"].as_str().unwrap_or_default().to_owned())
}

/// The federation's own authority: an operator looks until it is replaced.
pub(crate) async fn until_authority_idle(operator: &FederationOperator) {
    wait::until("the federation's authority is replaced", ROTATION, || async {
        let status: Value = serde_json::from_str(&operator.isthmus(&["authority", "status", "-o", "json"]).await?)?;
        ensure!(status["phase"] == "idle", "{status}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Handshakes that a service of the federation or a control-plane has refused since it was made, from its log.
fn refused_handshakes(ticking: &mut TickingLab) -> Vec<String> {
    let lab = &mut ticking.lab;
    let mut logs: Vec<_> = lab.federation.processes().map(|process| process.log().to_owned()).collect();
    logs.extend(lab.clusters.iter().map(|cluster| cluster.control_plane.log().to_owned()));
    let texts = logs.iter().map(|log| std::fs::read_to_string(log).unwrap());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.contains("refused a TLS handshake")).collect()
}

pub(crate) async fn until_idle(operator: &Operator, key: &str) {
    wait::until(&format!("{key} is replaced"), ROTATION, || async {
        let phase = phase(operator, key).await?;
        ensure!(phase == "idle", "{phase}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emergency_leaves_nobody_without_an_identity() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let directory = tempfile::tempdir().unwrap();
    // With SVIDs that live a day: none would be renewed for half of it.
    let mut ticking = TickingLab::start(directory.path(), 2, Settings::default()).await.unwrap();
    let east = ticking.lab.cluster("east").unwrap().operator();
    ticking.until_stream("east", "west").await.unwrap();
    east.isthmus(&["rotate", "root", "--emergency", "--wait", "--timeout", "30s"]).await.unwrap();
    for (from, to) in [("east", "west"), ("west", "east")] {
        ticking.until_stream(from, to).await.unwrap();
    }
    wait::until("all is well again", RECOVERY, || async { east.isthmus(&["status"]).await }).await.unwrap();
    ticking.lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_is_replaced_twice_and_no_handshake_fails() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let mut ticking = TickingLab::start(directory.path(), 2, QUICK).await.unwrap();
    let there = ticking.calls("east", "west").unwrap();
    let back = ticking.calls("west", "east").unwrap();
    let begun = Instant::now();
    let root = |ticking: &mut TickingLab, cluster: &str| {
        let path = ticking.lab.cluster(cluster).unwrap().directory().join("state/control-plane/root.crt");
        std::fs::read_to_string(path).unwrap()
    };
    let (east, west) =
        (ticking.lab.cluster("east").unwrap().operator(), ticking.lab.cluster("west").unwrap().operator());
    let federation_root = |ticking: &TickingLab| {
        let path = ticking.lab.federation.operator_directory().join("federation-root.crt");
        std::fs::read_to_string(path).unwrap()
    };
    let federation = ticking.lab.federation.operator();
    for _ in 0..2 {
        let federation_before = federation_root(&ticking);
        federation.isthmus(&["authority", "rotate"]).await.unwrap();
        let before = [root(&mut ticking, "east"), root(&mut ticking, "west")];
        for operator in [&east, &west] {
            operator.isthmus(&["rotate", "root"]).await.unwrap();
            operator.isthmus(&["rotate", "intermediate"]).await.unwrap();
            operator.isthmus(&["rotate", "publish-key"]).await.unwrap();
        }
        // A control-plane that dies on the way goes on where it was.
        let control_plane = &mut ticking.lab.cluster("east").unwrap().control_plane;
        control_plane.kill().await.unwrap();
        control_plane.restart().unwrap();
        control_plane.ready(ROTATION).await.unwrap();
        for key in ["publish-key", "root"] {
            until_idle(&east, key).await;
            until_idle(&west, key).await;
        }
        until_authority_idle(&federation).await;
        // What the operator needs next time is what there is now.
        federation.isthmus(&["authority", "renew"]).await.unwrap();
        let federation_after = federation_root(&ticking);
        assert_eq!(federation_after.matches("BEGIN CERTIFICATE").count(), 1);
        assert_ne!(federation_after, federation_before);
        for (cluster, before) in ["east", "west"].into_iter().zip(before) {
            let after = root(&mut ticking, cluster);
            assert_eq!(after.matches("BEGIN CERTIFICATE").count(), 1, "{cluster}");
            assert_ne!(after, before, "{cluster}");
        }
    }
    for calls in [&there, &back] {
        let calls = calls.since(begun);
        let failed: Vec<_> = calls.iter().filter_map(|call| call.outcome.as_ref().err()).collect();
        assert!(calls.len() > 200, "only {} calls", calls.len());
        assert!(failed.is_empty(), "{} of {} calls failed: {:?}", failed.len(), calls.len(), failed.first());
    }
    drop((there, back));
    let refused = refused_handshakes(&mut ticking);
    assert!(refused.is_empty(), "{refused:#?}");

    // Records are still believed under the new keys.
    east.isthmus(&["unexport", "shop/ticks-east"]).await.unwrap();
    wait::until("west hears of it", ROTATION, || async {
        let imports = west.isthmus(&["get", "imports", "-o", "json"]).await?;
        ensure!(!imports.contains("ticks-east"), "{imports}");
        Ok(())
    })
    .await
    .unwrap();
    ticking.lab.stop().await;
}
