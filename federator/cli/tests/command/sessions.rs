//! `isthmus status --federator` against admin listeners that say what they are told to.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{Ran, isthmus};

async fn federator(federation: Value, sessions: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new()
        .route("/debug/federation", get(move || std::future::ready(Json(federation))))
        .route("/debug/sessions", get(move || std::future::ready(Json(sessions))));
    // It ends with the test's runtime.
    tokio::spawn(axum::serve(listener, routes).into_future());
    address.to_string()
}

async fn status(addresses: &[&str], more: &[&str]) -> Ran {
    let named = addresses.iter().flat_map(|address| ["--federator", address]);
    let arguments: Vec<_> = ["status"].into_iter().chain(named).chain(more.iter().copied()).collect();
    isthmus(Path::new("/nonexistent"), &arguments, "").await
}

fn ago(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (now - seconds) * 1_000
}

fn federation(replica: &str, west_connected: bool) -> Value {
    json!({"replica": replica, "incarnation": "one", "revision": 812, "collectedRevision": 0, "records": 40,
        "members": ["east", "west"], "usage": [], "clusters": [
            {"cluster": "east", "connected": true, "sinceMs": ago(300), "replica": "federator-0", "appliedRevision": 812},
            {"cluster": "west", "connected": west_connected, "sinceMs": ago(7_320), "replica": "federator-1",
                "appliedRevision": 7}]})
}

fn session(cluster: &str, unacknowledged: u64, waiting: u64) -> Value {
    json!({"cluster": cluster, "replica": "control-plane-0", "publisher": true, "resumed": true, "namespaces": 3,
        "sinceMs": ago(300), "toldRevision": 800, "appliedRevision": 700, "unacknowledgedMs": unacknowledged,
        "behind": 12, "snapshot": false, "answersWaiting": waiting})
}

fn sessions(of: &[Value]) -> Value {
    json!({"replica": "federator-0", "incarnation": "one", "revision": 812, "lateMs": 6_000, "sessions": of})
}

fn columns(line: &str) -> Vec<&str> {
    line.split("   ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

#[tokio::test]
async fn who_is_connected_where_since_when_is_shown_and_all_is_well() {
    let (east, west) = (session("east", 0, 0), session("west", 1_500, 0));
    let first = federator(federation("federator-0", true), sessions(&[east])).await;
    let second = federator(federation("federator-1", true), sessions(&[west])).await;
    let ran = status(&[&first, &second], &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().map(columns).collect();
    assert!(lines[0][0].starts_with("federator-0 at 127.0.0.1:"), "{lines:?}");
    assert!(lines[0][0].ends_with("revision 812, 40 records, 2 of 2 members connected"), "{lines:?}");
    assert_eq!(lines[1], ["CLUSTER", "CONTROL-PLANE", "ROLE", "SINCE", "BEGAN", "APPLIED", "BEHIND", "OWES", "STATE"]);
    let east = &lines[2];
    assert_eq!((east[0], east[1], east[2], east[4]), ("east", "control-plane-0", "publishes", "resumed"));
    assert!(east[3].starts_with("5m"), "{east:?}");
    assert_eq!(east[5..], ["700", "12", "-", "InStep"]);
    let west = lines.iter().find(|line| line.first() == Some(&"west")).unwrap();
    assert_eq!(west[7..], ["1s", "InStep"], "it may owe one for less than three heartbeats");
    assert_eq!(lines.last().unwrap()[..], ["healthy"]);
}

#[tokio::test]
async fn slow_stuck_and_lost_clusters_are_bad_news() {
    let all = [session("east", 31_000, 0), session("west", 65_000, 8)];
    let first = federator(federation("federator-0", false), sessions(&all)).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let ran = status(&[&first, &gone], &[]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    let state = |cluster| {
        let line = ran.stdout.lines().map(columns).find(|line| line.first() == Some(&cluster)).unwrap();
        line.last().copied().unwrap().to_owned()
    };
    assert_eq!((state("east").as_str(), state("west").as_str()), ("Slow", "Stuck"));
    for expected in [
        "cluster east: control-plane-0 at federator-0 has not acknowledged for 31s what it was told",
        "cluster west: control-plane-0 at federator-0 has not acknowledged for 1m05s",
        "cluster west: no session for 2h02m, the last was at federator-1",
        &format!("no federator answers at {gone}"),
    ] {
        assert!(ran.stdout.contains(expected), "{expected:?} is not in {}", ran.stdout);
    }
    let ran = status(&[&first], &["-o", "json"]).await;
    let report = ran.json();
    assert_eq!((ran.code, &report["healthy"]), (3, &json!(false)));
    assert_eq!(report["replicas"][0]["sessions"][1]["answersWaiting"], 8);
    assert_eq!(report["replicas"][0]["clusters"][1]["connected"], false);
    assert_eq!(status(&[&gone], &[]).await.code, 4, "nobody answers at all");
}
