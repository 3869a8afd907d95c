//! `isthmus rotate` and `isthmus leave`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::{Ran, isthmus};

async fn on(control_plane: &ControlPlane, arguments: &[&str]) -> Ran {
    isthmus(control_plane.socket(), arguments, "").await
}

fn rotation(key: &str, phase: &str, waiting_for: &[&str]) -> Value {
    json!({"key": key, "phase": phase, "emergency": false, "waitingFor": waiting_for, "notBefore": null, "stalled": false,
        "problem": null})
}

#[tokio::test]
async fn a_rotation_is_begun_watched_and_ends() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| {
        state.status["rotations"] = json!([rotation("root", "spread", &["cluster/west/control-plane: gw-1"])]);
        state.meanwhile = Box::new(|progress| {
            if progress.asked == 3 {
                progress.status["rotations"] = json!([rotation("root", "idle", &[])]);
            }
        });
    });
    let ran = on(&control_plane, &["rotate", "root", "--wait", "--emergency"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "root replaced\n"), "{ran:?}");
    assert_eq!(ran.stderr.matches("root: spread: waits for cluster/west/control-plane: gw-1").count(), 1, "{ran:?}");
    let asked = control_plane.change(|state| state.wishes.pop());
    assert_eq!(asked, Some(json!({"key": "root", "emergency": true})));
    let ran = on(&control_plane, &["rotate", "status", "-o", "json"]).await;
    assert_eq!(ran.json()["rotations"][0]["phase"], "idle");
}

#[tokio::test]
async fn a_rotation_is_given_up_and_a_refusal_is_one_line() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| state.status["rotations"] = json!([rotation("root", "idle", &[])]));
    let ran = on(&control_plane, &["rotate", "root", "--cancel"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "rotation of root given up\n"), "{ran:?}");
    assert_eq!(control_plane.change(|state| state.wishes.pop()), Some(json!("cancel root")));
    control_plane.change(|state| state.refusal = Some((StatusCode::CONFLICT, json!({"error": "under way already"}))));
    let ran = on(&control_plane, &["rotate", "publish-key"]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stderr, "isthmus: control-plane refuses rotate publish-key: under way already\n");
    assert_eq!(on(&control_plane, &["rotate", "root", "--cancel", "--emergency"]).await.code, 2);
}

#[tokio::test]
async fn what_a_rotation_fails_at_is_told() {
    let control_plane = ControlPlane::start().await;
    let mut failed = rotation("publish-key", "idle", &[]);
    failed["problem"] = json!("no more keys");
    control_plane.change(|state| state.status["rotations"] = json!([failed]));
    let ran = on(&control_plane, &["rotate", "publish-key", "--wait"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "isthmus: rotate publish-key: no more keys\n"));
}

#[tokio::test]
async fn leaving_is_done_when_the_membership_is_over() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| {
        state.meanwhile = Box::new(|progress| {
            if progress.asked == 4 {
                progress.status["joined"] = json!(false);
            }
        });
    });
    let ran = on(&control_plane, &["leave"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "cluster east left federation mesh.example\n"), "{ran:?}");
    assert_eq!(control_plane.change(|state| state.wishes.pop()), Some(json!("leave")));
}

#[tokio::test]
async fn status_tells_of_replacement_rotation_and_alarms_of_the_authority() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| {
        state.status["standing"] = json!("replaced by generation 7");
        state.status["rotations"] = json!([rotation("root", "drain", &[])]);
        state.status["authority"] = json!({"roots": 2, "problem": "no next intermediate: ca.key is not there",
            "notAfter": "2036-01-01T00:00:00Z", "intermediateNotAfter": "2026-01-01T00:00:00Z", "published": true});
    });
    let ran = on(&control_plane, &["status"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    for told in ["replaced by generation 7", "root: drain", "authority: no next intermediate: ca.key is not there"] {
        assert!(ran.stdout.contains(told), "{told}: {}", ran.stdout);
    }
}
