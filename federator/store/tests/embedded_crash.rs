//! `kill -9` in mid-write loses nothing that was acknowledged.
//!
//! The test starts its own binary again as the process to be killed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use federation_store::{EmbeddedStore, Snapshot, Store, Transaction};
use futures_util::StreamExt;

/// Names the file to the child process.
const FILE: &str = "FEDERATION_STORE_CRASH_FILE";
/// Tells the child process which round it is.
const ROUND: &str = "FEDERATION_STORE_CRASH_ROUND";
const ROUNDS: usize = 5;
const TASKS: usize = 8;
/// How many acknowledgements a child gives before it is killed.
const ACKNOWLEDGED: usize = 300;

#[tokio::test]
async fn acknowledged_writes_survive_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let seen = acknowledged_until_killed(&path, round);
        assert!(seen.len() >= ACKNOWLEDGED, "round {round} acknowledged {}", seen.len());
        acknowledged.extend(seen);
        let store = EmbeddedStore::open(&path).await.unwrap();
        check(&store, &acknowledged).await;
        store.close().await;
    }
}

/// Each acknowledged pair is there, each pair is whole, and history has no hole.
async fn check(store: &EmbeddedStore, acknowledged: &[String]) {
    let (left, right) = (store.snapshot("left/").await.unwrap(), store.snapshot("right/").await.unwrap());
    let names = |snapshot: &Snapshot| -> Vec<(String, u64)> {
        let names = snapshot.entries.iter().map(|entry| {
            let name = entry.key.split_once('/').unwrap().1.to_owned();
            assert_eq!(entry.value, name);
            (name, entry.modified)
        });
        names.collect()
    };
    let found = names(&left);
    assert_eq!(found, names(&right), "transactions are whole");
    for name in acknowledged {
        let place = found.binary_search_by(|(found, _)| found.cmp(name));
        assert!(place.is_ok(), "{name} was acknowledged and is gone");
    }
    let mut watch = store.watch("", 1);
    for revision in 2..=left.revision {
        assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
    }
}

/// Lets a child write, kills it, and returns what it had acknowledged.
fn acknowledged_until_killed(path: &Path, round: usize) -> Vec<String> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "write_until_killed", "--ignored", "--nocapture"])
        .env(FILE, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let acknowledged = read_and_kill(&mut child, output);
    child.wait().unwrap();
    acknowledged
}

fn read_and_kill(child: &mut Child, output: impl BufRead) -> Vec<String> {
    let mut acknowledged = Vec::new();
    // What was written to the pipe before the end counts too; a torn last line has no end mark.
    for line in output.lines() {
        let line = line.unwrap();
        if let Some(name) = line.strip_prefix("acknowledged ").and_then(|rest| rest.strip_suffix(" .")) {
            acknowledged.push(name.to_owned());
        }
        if acknowledged.len() == ACKNOWLEDGED {
            child.kill().unwrap();
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that the other test kills"]
async fn write_until_killed() {
    let (Ok(file), Ok(round)) = (env::var(FILE), env::var(ROUND)) else { return };
    let store = EmbeddedStore::open(file).await.unwrap();
    let writers = (0..TASKS).map(|task| tokio::spawn(write(store.clone(), format!("{round}/{task}"))));
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

async fn write(store: EmbeddedStore, task: String) {
    for n in 0_u64.. {
        let name = format!("{task}/{n}");
        let pair = Transaction::new().put(format!("left/{name}"), name.clone());
        let committed = store.commit(pair.put(format!("right/{name}"), name.clone())).await.unwrap();
        assert!(committed.done().is_some());
        let line = format!("acknowledged {name} .\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}
