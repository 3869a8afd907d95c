//! The contract again, and more than it, while members are killed, paused, cut off or slow.

use std::time::{Duration, Instant};

use federation_store::lab::MEMBERS;
use federation_store::{
    Change, Committed, EtcdStore, Followed, Revision, Store, Transaction, WatchError, WatchStream, contract, follow,
};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::support::{DEADLINE, Lab, lab, put};

/// A silent watch must be noticed and opened elsewhere within this time.
const NOTICED: Duration = Duration::from_secs(5);
/// How long a fault lasts: longer than an election, and than silence takes to be noticed.
const FAULT: Duration = Duration::from_secs(4);
/// How long everything is well between faults, so that what they interrupt goes on.
const CALM: Duration = Duration::from_secs(2);
/// How often what members count is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Runs `work` while `trouble` makes trouble.
async fn under(work: impl Future<Output = ()>, trouble: impl Future<Output = ()>) {
    tokio::select! {
        () = Box::pin(work) => {}
        () = Box::pin(trouble) => panic!("trouble ended before the work"),
    }
}

async fn the_contract(lab: &Lab) {
    let make = async || lab.store().await;
    Box::pin(contract::check_transactions(&make)).await;
    Box::pin(contract::check_ranges(&make)).await;
    Box::pin(contract::check_watches(&make)).await;
    Box::pin(contract::check_leases(&make)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_while_members_are_killed_in_turn() {
    let lab = lab().await;
    let cluster = &lab.cluster;
    under(the_contract(&lab), async {
        for turn in 0.. {
            // The leader every second time.
            let member = if turn % 2 == 0 { cluster.leader().await.unwrap() } else { turn % MEMBERS };
            cluster.kill(member).unwrap();
            cluster.leader().await.unwrap();
            cluster.restart(member).unwrap();
            cluster.answering(member).await.unwrap();
            sleep(CALM).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_while_the_leader_is_paused_again_and_again() {
    let lab = lab().await;
    let cluster = &lab.cluster;
    under(the_contract(&lab), async {
        loop {
            let leader = cluster.leader().await.unwrap();
            cluster.pause(leader).unwrap();
            sleep(FAULT).await;
            cluster.resume(leader).unwrap();
            cluster.answering(leader).await.unwrap();
            sleep(CALM).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_while_members_are_cut_off_in_turn_and_slow() {
    let lab = lab().await;
    let cluster = &lab.cluster;
    under(the_contract(&lab), async {
        loop {
            let leader = cluster.leader().await.unwrap();
            cluster.cut(leader);
            sleep(FAULT).await;
            cluster.heal();
            cluster.answering(leader).await.unwrap();
            cluster.slow(cluster.leader().await.unwrap(), Duration::from_millis(30));
            sleep(FAULT).await;
            cluster.heal();
        }
    })
    .await;
}

/// What a watch reports, as it comes.
fn reported(mut watch: WatchStream) -> mpsc::Receiver<(Revision, String)> {
    let (sender, receiver) = mpsc::channel(4096);
    tokio::spawn(async move {
        while let Some(batch) = watch.next().await {
            // An error ends the reports, which is what the test then fails on.
            let Ok(batch) = batch else { return };
            for change in &batch.changes {
                let Change::Put(entry) = change else { panic!("nothing is deleted: {change:?}") };
                let value = String::from_utf8_lossy(&entry.value).into_owned();
                let _ = sender.send((batch.revision, value)).await;
            }
        }
    });
    receiver
}

/// How long it takes until a put made now is reported.
async fn lag(store: &EtcdStore, reports: &mut mpsc::Receiver<(Revision, String)>, value: &str) -> Duration {
    let begun = Instant::now();
    put(store, "k", value).await;
    loop {
        let (_, reported) = timeout(DEADLINE, reports.recv()).await.expect("it is reported").unwrap();
        if reported == value {
            return begun.elapsed();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_watch_is_noticed_and_opened_elsewhere_in_time() {
    let lab = lab().await;
    // A watch runs at one member, so pausing each in turn hits it.
    let (watching, writing) = (lab.shared().await, lab.shared().await);
    let mut reports = reported(watching.watch("", 0));
    lag(&writing, &mut reports, "before").await;
    for member in 0..MEMBERS {
        lab.cluster.pause(member).unwrap();
        let took = lag(&writing, &mut reports, &format!("paused {member}")).await;
        lab.cluster.resume(member).unwrap();
        eprintln_to_log(&format!("watch with member {member} paused: {took:?}"));
        assert!(took < NOTICED, "with member {member} paused it took {took:?}");
        lab.cluster.answering(member).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_arrive_in_time_when_the_leader_is_killed_or_cut_off() {
    let lab = lab().await;
    let (watching, writing) = (lab.shared().await, lab.shared().await);
    let mut reports = reported(watching.watch("", 0));
    lag(&writing, &mut reports, "before").await;
    let leader = lab.cluster.leader().await.unwrap();
    lab.cluster.kill(leader).unwrap();
    let took = lag(&writing, &mut reports, "killed").await;
    eprintln_to_log(&format!("leader killed: {took:?}"));
    assert!(took < NOTICED, "with the leader killed it took {took:?}");
    lab.cluster.restart(leader).unwrap();
    lab.cluster.answering(leader).await.unwrap();
    let leader = lab.cluster.leader().await.unwrap();
    lab.cluster.cut(leader);
    let took = lag(&writing, &mut reports, "cut off").await;
    eprintln_to_log(&format!("leader cut off: {took:?}"));
    assert!(took < NOTICED * 2, "with the leader cut off it took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_increment_counts_once_while_leaders_die() {
    let lab = lab().await;
    let cluster = &lab.cluster;
    let store = lab.store().await;
    let counting = async {
        let mut counted = 0_u64;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            counted += increment(&store).await;
        }
        let counter = store.get("counter").await.unwrap().unwrap();
        assert_eq!(counter.value, counted.to_string(), "what was acknowledged, and nothing else");
        assert!(counted > 100, "only {counted} increments in 20 s");
    };
    under(Box::pin(counting), async {
        loop {
            let leader = cluster.leader().await.unwrap();
            cluster.kill(leader).unwrap();
            cluster.leader().await.unwrap();
            cluster.restart(leader).unwrap();
            cluster.answering(leader).await.unwrap();
            sleep(CALM).await;
        }
    })
    .await;
}

/// Adds one, once; the answer is what was added.
async fn increment(store: &EtcdStore) -> u64 {
    let entry = store.get("counter").await.unwrap();
    let (count, modified) =
        entry.map_or((0, 0), |entry| (String::from_utf8_lossy(&entry.value).parse::<u64>().unwrap(), entry.modified));
    let next = Transaction::new().expecting("counter", modified).put("counter", (count + 1).to_string());
    match store.commit(next).await {
        Ok(Committed::Done(_)) => 1,
        Ok(Committed::Conflict { .. }) => panic!("nobody else counts"),
        Err(error) => panic!("the outcome must be known while a majority lives: {error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_a_compaction_lists_and_goes_on() {
    let lab = lab().await;
    let (store, writing) = (lab.store().await, lab.store_beside().await);
    let first = put(&writing, "k/0", "").await;
    let (sender, mut followed) = mpsc::channel(4096);
    // The follower's replica stands still while the history moves on below it.
    let mut last = first;
    for n in 0..300 {
        last = put(&writing, &format!("k/{}", n % 7), &n.to_string()).await;
    }
    writing.compact(last).await.unwrap();
    let mut stale = store.watch("k/", first);
    let end = timeout(DEADLINE, stale.next()).await.unwrap();
    assert!(matches!(end, Some(Err(WatchError::Compacted { oldest })) if oldest == last), "{end:?}");
    let following = tokio::spawn({
        let store = store.clone();
        async move { follow(&store, "k/", first, |change| sender.try_send(change).unwrap()).await }
    });
    let Some(Followed::Snapshot(snapshot)) = timeout(DEADLINE, followed.recv()).await.unwrap() else {
        panic!("a snapshot comes first");
    };
    assert_eq!(snapshot.entries, writing.snapshot("k/").await.unwrap().entries);
    let later = put(&writing, "k/new", "").await;
    let Some(Followed::Batch(batch)) = timeout(DEADLINE, followed.recv()).await.unwrap() else {
        panic!("then changes");
    };
    assert_eq!(batch.revision, later);
    following.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_pages_are_read_in_smaller_ones() {
    let lab = lab().await;
    let store = lab.store().await;
    for n in 0..24 {
        store
            .commit(Transaction::new().put(format!("big/{n:02}"), vec![n; 1024 * 1024]))
            .await
            .unwrap()
            .done()
            .unwrap();
    }
    let snapshot = store.snapshot("big/").await.unwrap();
    assert_eq!(snapshot.entries.iter().map(|entry| entry.value[0]).collect::<Vec<_>>(), (0..24).collect::<Vec<_>>());
    // All of it once more through a watch, where etcd splits what is too large for one message.
    let mut watch = store.watch("big/", 0);
    for n in 0..24 {
        let batch = timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
        assert!(matches!(&batch.changes[..], [Change::Put(entry)] if entry.value == vec![n; 1024 * 1024]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_store_has_as_many_watches_at_etcd_as_it_has_watchers() {
    let lab = lab().await;
    let stores = [lab.store().await, lab.store().await];
    let mut watches: Vec<_> = stores.iter().map(|store| store.watch("", 0)).collect();
    for (store, watch) in stores.iter().zip(&mut watches) {
        put(store, "k", "").await;
        timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    }
    assert_eq!(lab.watchers().await, 2);
    drop(watches);
    let begun = Instant::now();
    while lab.watchers().await > 0 {
        assert!(begun.elapsed() < DEADLINE, "dropped watches stay");
        sleep(POLL).await;
    }
}

/// Shown with `--nocapture`.
fn eprintln_to_log(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
