//! Quarantine: what is shut out is cut off within a second, and stays so over restarts, until it is released.

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::lab::authority::TrustOperator;
use e2e::lab::{READY, wait};
use e2e::ticks::lab::{Settings, TickingLab, byte_of};
use e2e::ticks::{Calls, Stream};
use rustix::process::Signal;

use crate::ONE_AT_A_TIME;

/// The last byte of the quarantined that reaches an application may come this long after the operator's word.
const GOAL: Duration = Duration::from_secs(1);

/// After the first moment: nothing may come for this long.
const SILENCE: Duration = Duration::from_millis(1500);

fn operator(ticking: &TickingLab) -> TrustOperator {
    TrustOperator::open(ticking.lab.federation.operator_directory()).unwrap()
}

async fn until_answered(calls: &[&Calls]) {
    let since = Instant::now();
    wait::until("calls are answered", READY, || async {
        for calls in calls {
            let answered = calls.since(since).iter().filter(|call| call.outcome.is_ok()).count();
            ensure!(answered > 10, "{answered}: {:?}", calls.since(since).last());
        }
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_cluster_is_cut_off_within_a_second_and_stays_so_until_it_is_released() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let mut ticking = TickingLab::start(directory.path(), 3, Settings::default()).await.unwrap();
    let operator = operator(&ticking);
    let mut streams: Vec<(&str, &str, Stream)> = Vec::new();
    for (from, to) in [("west", "east"), ("west", "north"), ("east", "west"), ("north", "west")] {
        streams.push((from, to, ticking.until_stream(from, to).await.unwrap()));
    }
    let other = ticking.until_stream("east", "north").await.unwrap();
    let (out, back) = (ticking.calls("west", "east").unwrap(), ticking.calls("east", "west").unwrap());
    let unharmed = ticking.calls("north", "east").unwrap();
    until_answered(&[&out, &back, &unharmed]).await;

    let begun = Instant::now();
    let epoch = operator
        .change(|list| {
            list.clusters.insert("west".parse().unwrap());
        })
        .await
        .unwrap();
    operator.until_applied(&["east", "north"], epoch, READY).await.unwrap();
    let acknowledged = begun.elapsed();
    wait::until("every stream has ended", READY, || async {
        let alive: Vec<_> = streams.iter().filter(|(.., stream)| !stream.ended()).map(|it| (it.0, it.1)).collect();
        ensure!(alive.is_empty(), "{alive:?}");
        Ok(())
    })
    .await
    .unwrap();
    let heard = |ticking: &TickingLab| {
        let by_applications = ["east", "north"].map(|at| ticking.heard(at, "west"));
        let of_applications = ["east", "north"].map(|of| ticking.heard("west", of));
        let by_clients = streams.iter().filter(|(from, ..)| *from != "west").map(|it| it.2.last(byte_of("west")));
        let calls = [out.last_answer(), back.last_answer()];
        by_applications.into_iter().chain(of_applications).chain(by_clients).chain(calls).flatten().max().unwrap()
    };
    // Calls go on: none may come through any more.
    let quiet = Instant::now() + SILENCE;
    wait::until("a while of silence", READY, || async {
        ensure!(Instant::now() > quiet, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let last = heard(&ticking).saturating_duration_since(begun);
    assert!(last <= GOAL, "the last byte came {last:?} after the operator's word, acknowledged in {acknowledged:?}");
    assert!(acknowledged <= GOAL, "acknowledged in {acknowledged:?}");
    let refused = out.since(begun + GOAL);
    assert!(refused.len() > 5 && refused.iter().all(|call| call.outcome.is_err()), "{refused:?}");
    assert!(!other.ended(), "others' streams go on");
    let failed: Vec<_> = unharmed.since(begun).into_iter().filter_map(|call| call.outcome.err()).collect();
    assert!(failed.is_empty(), "others' calls: {failed:?}");
    drop((out, back, unharmed, other));

    // Everything starts again, with what is on disk.
    ticking.lab.federation.kill().await.unwrap();
    for cluster in &mut ticking.lab.clusters {
        cluster.kill().await.unwrap();
    }
    let restarted = Instant::now();
    for name in ["east", "north"] {
        ticking.lab.cluster(name).unwrap().restart().await.unwrap();
    }
    for process in ticking.lab.cluster("west").unwrap().processes() {
        process.restart().unwrap();
    }
    let without_federation = ticking.until_stream("east", "north").await.unwrap();
    ticking.lab.federation.restart().await.unwrap();
    let (out, back) = (ticking.calls("west", "east").unwrap(), ticking.calls("east", "west").unwrap());
    wait::until("a lot of refusals", READY, || async {
        for calls in [&out, &back] {
            let calls = calls.since(restarted);
            ensure!(calls.len() > 50, "{} calls", calls.len());
        }
        Ok(())
    })
    .await
    .unwrap();
    for calls in [&out, &back] {
        let answered = calls.since(restarted).into_iter().filter(|call| call.outcome.is_ok()).count();
        assert_eq!(answered, 0, "somebody forgot the quarantine");
    }
    assert!(!without_federation.ended());
    drop((out, back));

    operator
        .change(|list| {
            list.clusters.remove("west");
        })
        .await
        .unwrap();
    ticking.until_stream("west", "east").await.unwrap();
    ticking.until_stream("east", "west").await.unwrap();
    ticking.lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_identity_is_cut_off_alone_and_a_proxy_that_does_not_acknowledge_is_named() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let mut ticking = TickingLab::start(directory.path(), 2, Settings::default()).await.unwrap();
    let operator = operator(&ticking);
    let of_client = ticking.until_stream("west", "east").await.unwrap();
    let of_application = ticking.until_stream("east", "west").await.unwrap();
    let client = "spiffe://west.mesh.example/ns/shop/sa/client";

    let begun = Instant::now();
    let epoch = operator
        .change(|list| {
            list.spiffe_ids.insert(client.to_owned());
        })
        .await
        .unwrap();
    wait::until("the client's stream has ended", READY, || async {
        ensure!(of_client.ended(), "it goes on");
        Ok(())
    })
    .await
    .unwrap();
    operator.until_applied(&["east", "west"], epoch, READY).await.unwrap();
    let last = ticking.heard("east", "west").unwrap().saturating_duration_since(begun);
    assert!(last <= GOAL, "the last byte came {last:?} after the operator's word");
    assert!(!of_application.ended(), "another identity of the same cluster goes on");
    assert!(ticking.stream("west", "east").await.is_err(), "it comes in again");
    drop(of_application);

    let frozen = |ticking: &mut TickingLab, signal: Signal| {
        let pod = &ticking.lab.cluster("east").unwrap().pods_of("client").unwrap()[0];
        pod.sidecar.as_ref().unwrap().signal(signal);
    };
    frozen(&mut ticking, Signal::STOP);
    let epoch = operator
        .change(|list| {
            list.spiffe_ids.remove(client);
        })
        .await
        .unwrap();
    wait::until("the frozen proxy is named", READY, || async {
        let watchers = operator.watchers().await?;
        let east = &watchers["spiffe://mesh.example/cluster/east/control-plane"];
        ensure!(east.acknowledged >= epoch && east.pending_proxies == ["client"], "{east:?}");
        Ok(())
    })
    .await
    .unwrap();
    frozen(&mut ticking, Signal::CONT);
    operator.until_applied(&["east", "west"], epoch, READY).await.unwrap();
    ticking.until_stream("west", "east").await.unwrap();
    ticking.lab.stop().await;
}
