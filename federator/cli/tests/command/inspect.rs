//! `isthmus get` and `isthmus status`, and what every command does without a control-plane.

use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::json;

use crate::control_plane::{ControlPlane, export_of};
use crate::{Ran, isthmus};

async fn on(control_plane: &ControlPlane, arguments: &[&str]) -> Ran {
    isthmus(control_plane.socket(), arguments, "").await
}

fn columns(line: &str) -> Vec<&str> {
    line.split("   ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

#[tokio::test]
async fn exports_are_listed_with_their_conditions() {
    let control_plane = ControlPlane::start().await;
    let fine =
        [("Valid", "True", "Valid", ""), ("Ready", "True", "Ready", ""), ("Conflict", "False", "NoConflicts", "")];
    let broken =
        [("Valid", "False", "NoService", "there is none"), ("Conflict", "True", "PortConflict", "ports differ")];
    control_plane.change(|state| {
        state.exports =
            vec![export_of("shop", "redis", &broken), export_of("pay", "till", &[]), export_of("shop", "cart", &fine)];
    });
    let ran = on(&control_plane, &["get", "exports", "-n", "shop"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().map(columns).collect();
    assert_eq!(lines[0], ["NAMESPACE", "NAME", "VALID", "READY", "CONFLICT", "ENDPOINTS", "AGE"]);
    assert_eq!(lines[1][..6], ["shop", "cart", "True", "True", "False", "2/3"]);
    assert_eq!(lines[2][..6], ["shop", "redis", "False (NoService)", "-", "True (PortConflict)", "2/3"]);
    assert_eq!(lines.len(), 3);

    let ran = on(&control_plane, &["get", "exports", "-o", "json"]).await;
    let names: Vec<_> = ran.json().as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
    assert_eq!(names, ["till", "cart", "redis"]);
    assert_eq!(ran.json()[2]["conditions"][0]["message"], "there is none");
}

#[tokio::test]
async fn imports_are_listed_with_addresses_ports_and_exporters() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| {
        state.imports =
            vec![json!({"namespace": "shop", "name": "cart", "type": "ClusterSetIP", "ips": ["241.0.0.3", "fd00::3"],
            "ports": [{"name": "grpc", "port": 7070, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
            "clusters": [{"cluster": "east", "local": true, "capacity": 2, "ready": 2},
                {"cluster": "west", "capacity": 1, "ready": 0, "suspect": true}],
            "conflicts": ["PortConflict"]})];
    });
    let ran = on(&control_plane, &["get", "imports"]).await;
    let lines: Vec<_> = ran.stdout.lines().map(columns).collect();
    assert_eq!(lines[0], ["NAMESPACE", "NAME", "TYPE", "IP", "PORT(S)", "READY BY CLUSTER", "CONFLICTS"]);
    assert_eq!(
        lines[1],
        ["shop", "cart", "ClusterSetIP", "241.0.0.3,fd00::3", "7070/TCP,53/UDP", "east 2/2, west 0/1?", "PortConflict"]
    );
    let ran = on(&control_plane, &["get", "imports", "-n", "pay"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "no imports\n"));
}

#[tokio::test]
async fn clusters_are_listed_as_measured() {
    let control_plane = ControlPlane::start().await;
    let ran = on(&control_plane, &["get", "clusters"]).await;
    let lines: Vec<_> = ran.stdout.lines().map(columns).collect();
    assert_eq!(lines[0], ["CLUSTER", "STATE", "GATEWAYS REACHABLE", "RTT", "PROBED", "UPDATED", "EXPORTS", "ALARMS"]);
    assert_eq!(lines[1], ["west", "Connected (1m01s)", "1/1", "0.42ms", "3s", "1s", "2", "-"]);
    let ran = on(&control_plane, &["get", "clusters", "-n", "shop"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[tokio::test]
async fn a_healthy_status_is_exit_code_0() {
    let control_plane = ControlPlane::start().await;
    let ran = on(&control_plane, &["status"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for expected in [
        "east of federation mesh.example",
        "joined, generation 1\n",
        "connected, last state 4s ago",
        "1 exported, 4 in the federation",
        "sidecars 2, gateways 1",
        "a (gw.east.example:15443)",
        "127.1.0.3:53",
        "0.42ms",
        "\nhealthy\n",
    ] {
        assert!(ran.stdout.contains(expected), "{expected:?} is not in {}", ran.stdout);
    }
    assert!(!ran.stdout.contains('\u{1b}'), "a pipe gets no colours");
}

#[tokio::test]
async fn an_unhealthy_status_is_exit_code_3_and_says_what_is_wrong() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| {
        state.status["federator"] = json!({"connected": false, "problem": "connection refused", "ageMs": 65_000});
        state.status["clusters"][0]["gateways"][0]["reachable"] = json!(false);
        state.status["clusters"][0]["gateways"][0]["lastError"] = json!("timed out");
        state.status["clusters"][0]["connected"] = json!(false);
    });
    let ran = on(&control_plane, &["status"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    for expected in [
        "not healthy:",
        "federator: not connected: connection refused",
        "cluster west: gateway a (127.2.0.4:15443) is unreachable: timed out",
        "cluster west: the federation has lost touch with it",
        "Suspect (1m01s)",
        "not connected, last state 1m05s ago: connection refused",
        "0/1",
    ] {
        assert!(ran.stdout.contains(expected), "{expected:?} is not in {}", ran.stdout);
    }
    let ran = on(&control_plane, &["status", "-o", "json"]).await;
    assert_eq!(ran.code, 3);
    let json = ran.json();
    assert_eq!(json["healthy"], false);
    assert_eq!(json["findings"].as_array().unwrap().len(), 3);
    assert_eq!(json["clusters"][0]["gateways"][0]["reachable"], false);
    assert_eq!(json["federation"], "mesh.example");
}

#[tokio::test]
async fn colours_come_when_asked_for() {
    let control_plane = ControlPlane::start().await;
    let ran = on(&control_plane, &["status", "--color", "always"]).await;
    assert!(ran.stdout.contains("\u{1b}[32mhealthy\u{1b}[0m"), "{ran:?}");
}

#[tokio::test]
async fn a_control_plane_that_says_little_is_understood() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| state.status = json!({"cluster": "east", "joined": false}));
    let ran = on(&control_plane, &["status"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.stdout.contains("not joined"), "{ran:?}");
}

#[tokio::test]
async fn without_a_control_plane_the_error_says_where_it_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("admin.sock");
    // A socket that nobody listens at any more.
    let stale = directory.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [&missing, &stale] {
        for arguments in [&["status"][..], &["get", "imports"], &["export", "shop/cart"], &["dig", "shop/cart"]] {
            let ran = isthmus(socket, arguments, "").await;
            assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{arguments:?}: {ran:?}");
            let expected =
                format!("isthmus: no control-plane answers at {}: is it running? set --admin", socket.display());
            assert!(ran.stderr.starts_with(&expected) && ran.stderr.lines().count() == 1, "{ran:?}");
        }
    }
}

#[tokio::test]
async fn a_socket_that_speaks_something_else_is_an_error_and_no_hang() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail.example ready\r\n").await;
        }
    });
    let ran = isthmus(&socket, &["status"], "").await;
    task.abort();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains(&socket.display().to_string()) && ran.stderr.contains("GET /v1/status"), "{ran:?}");
}

#[tokio::test]
async fn an_answer_of_another_shape_is_an_error_that_names_the_field() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| state.status["dns"] = json!(["nowhere"]));
    let ran = on(&control_plane, &["status"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("the answer is not understood: invalid socket address"), "{ran:?}");
}

#[tokio::test]
async fn a_reader_that_stops_reading_ends_the_command_quietly() {
    let control_plane = ControlPlane::start().await;
    let many = (0..5_000).map(|number| export_of("shop", &format!("service-{number}"), &[]));
    control_plane.change(|state| state.exports = many.collect());
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_isthmus"));
    command.args(["get", "exports", "-o", "json"]).env("ISTHMUS_ADMIN", control_plane.socket());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().await.unwrap();
    let mut stderr = String::new();
    output.stderr.as_slice().read_to_string(&mut stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""));
}
