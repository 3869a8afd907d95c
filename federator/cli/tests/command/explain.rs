//! `isthmus explain` against a sidecar's admin listener that says what it is told to.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{Ran, isthmus};

type Asked = Arc<Mutex<Vec<Value>>>;

async fn sidecar(status: StatusCode, answer: Value) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let heard = Arc::clone(&asked);
    let explain = post(move |Json(question): Json<Value>| async move {
        heard.lock().unwrap().push(question);
        (status, Json(answer))
    });
    // It ends with the test's runtime.
    tokio::spawn(axum::serve(listener, Router::new().route("/debug/explain", explain)).into_future());
    (address, asked)
}

async fn explain(sidecar: &str, arguments: &[&str]) -> Ran {
    let all = [&["explain", "--sidecar", sidecar], arguments].concat();
    isthmus(Path::new("/nonexistent"), &all, "").await
}

fn state(east: f64, west: f64, ejected: Value) -> Value {
    let member = |via: &str, load: f64, ejected: &Value| {
        json!({"cluster": "east", "via": via, "endpoint": format!("east/shop/{via}"), "gateway": null, "load": load,
            "unavailable": if ejected.is_null() { Value::Null } else { json!("Ejected") }, "ejected": ejected,
            "slowStart": 1.0, "inFlight": 3, "latencyMicroseconds": 420})
    };
    let east = json!({"name": "east/a", "why": "same cluster, same zone", "total": 3, "ready": 2, "healthy": 1.0,
        "load": east, "members": [member("cart-1", east, &Value::Null), member("cart-2", 0.0, &ejected)]});
    let path = json!({"cluster": "west", "via": "gw-1 slot 7", "endpoint": null, "gateway": "gw-1", "load": west,
        "slowStart": 1.0, "inFlight": 0});
    let west = json!({"name": "west", "why": "other region", "total": 4, "ready": 4, "healthy": 4.0, "load": west,
        "suspect": true, "members": [path]});
    json!({"panic": false, "overprovisioning": 1.4, "priorities": [
        {"priority": 0, "health": 0.7, "groups": [east]}, {"priority": 2, "health": 1.0, "groups": [west]}]})
}

fn answer(what_if: Value) -> Value {
    let ejected = json!({"cause": "ConsecutiveFailures", "remainingMilliseconds": 3000, "times": 2});
    json!({"service": "shop/cart", "host": "cart.shop.svc.clusterset.local", "ports": [{"port": 80, "protocol": "Http",
        "policy": "shop/near", "sticky": false, "now": state(0.7, 0.3, ejected), "whatIf": what_if}]})
}

fn columns(line: &str) -> Vec<&str> {
    line.split("   ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

#[tokio::test]
async fn shares_reasons_and_ejections_are_told() {
    let (address, asked) = sidecar(StatusCode::OK, answer(Value::Null)).await;
    let ran = explain(&address.to_string(), &["shop/cart", "--port", "80"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(*asked.lock().unwrap(), [json!({"service": "shop/cart", "port": 80, "failed": []})]);
    let lines: Vec<_> = ran.stdout.lines().map(columns).collect();
    assert_eq!(lines[0], ["shop/cart:80 (Http, policy shop/near)"]);
    assert_eq!(lines[2], ["PRIORITY", "GROUP", "WHY", "SHARE", "HEALTHY", "STATE"]);
    assert_eq!(lines[3], ["0", "east/a", "same cluster, same zone", "70.0%", "1/2 of 3", "in use"]);
    let suspect = "suspect: its cluster's lease is gone";
    assert_eq!(lines[4], ["2", "west", "other region", "30.0%", "4/4 of 4", suspect]);
    assert_eq!(lines[6], ["SHARE", "GROUP", "ENDPOINT", "GATEWAY", "IN FLIGHT", "LATENCY", "STATE"]);
    assert_eq!(lines[7], ["70.0%", "east/a", "east/shop/cart-1", "-", "3", "0.42ms", "in use"]);
    let out = "ejected for 3s: failures in a row, 2 in all";
    assert_eq!(lines[8], ["0.0%", "east/a", "east/shop/cart-2", "-", "3", "0.42ms", out]);
    assert_eq!(lines[9], ["30.0%", "west", "-", "gw-1", "0", "-", "in use"]);
}

#[tokio::test]
async fn what_would_be_stands_beside_what_is() {
    let (address, asked) = sidecar(StatusCode::OK, answer(state(1.0, 0.0, Value::Null))).await;
    let arguments = ["shop/cart", "--without", "cluster=west", "--without", "gateway=gw-1"];
    let ran = explain(&address.to_string(), &arguments).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(asked.lock().unwrap()[0]["failed"], json!(["cluster=west", "gateway=gw-1"]));
    assert!(ran.stdout.contains("cluster=west and gateway=gw-1 failed"), "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().map(columns).collect();
    assert_eq!(lines[3], ["PRIORITY", "GROUP", "WHY", "SHARE", "IF", "HEALTHY", "STATE"]);
    assert_eq!(lines[4][3..5], ["70.0%", "100.0%"]);
    assert_eq!(lines[5][3..5], ["30.0%", "0.0%"]);
    assert_eq!(lines[10][..2], ["30.0%", "0.0%"]);

    let ran = explain(&address.to_string(), &[&arguments[..], &["-o", "json"]].concat()).await;
    assert_eq!(ran.json()["ports"][0]["whatIf"]["priorities"][1]["groups"][0]["load"], 0.0);
}

#[tokio::test]
async fn a_refusal_and_an_absent_sidecar_are_one_line_each() {
    let unknown = json!({"error": "shop/cart: no cluster exports it"});
    let (address, _) = sidecar(StatusCode::NOT_FOUND, unknown).await;
    let ran = explain(&address.to_string(), &["shop/cart"]).await;
    assert_eq!(
        (ran.code, ran.stderr),
        (1, format!("isthmus: sidecar at {address}: shop/cart: no cluster exports it\n"))
    );
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let ran = explain(&gone.to_string(), &["shop/cart"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.starts_with(&format!("isthmus: no sidecar answers at {gone}: ")), "{ran:?}");
}
