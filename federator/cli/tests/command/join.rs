//! `isthmus join`, `export` and `unexport`: what changes something, and waits for it.

use std::fs;

use axum::http::StatusCode;
use serde_json::json;

use crate::control_plane::{ControlPlane, export_of};
use crate::token::operator;
use crate::{Ran, isthmus};

/// A token made by the command itself.
async fn token(control_plane: &ControlPlane) -> String {
    let directory = tempfile::tempdir().unwrap();
    operator(directory.path());
    let arguments = ["token", "create", "--cluster", "east", "--operator", directory.path().to_str().unwrap()];
    isthmus(control_plane.socket(), &arguments, "").await.stdout.trim_end().to_owned()
}

async fn on(control_plane: &ControlPlane, arguments: &[&str]) -> Ran {
    isthmus(control_plane.socket(), arguments, "").await
}

#[tokio::test]
async fn a_token_is_handed_over_however_it_is_given() {
    let control_plane = ControlPlane::start().await;
    let token = token(&control_plane).await;
    control_plane.change(|state| state.status["generation"] = json!(u64::MAX));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{token}\n")).unwrap();
    let path = file.path().to_str().unwrap();
    let ways: [(&[&str], &str); 4] =
        [(&["join", &token], ""), (&["join", "--token-file", path], ""), (&["join", "-"], &token), (&["join"], &token)];
    for (arguments, stdin) in ways {
        let ran = isthmus(control_plane.socket(), arguments, stdin).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.stdout, "cluster east joined federation mesh.example\n");
        assert_eq!(control_plane.change(|state| state.tokens.pop()).as_deref(), Some(token.as_str()));
    }
}

#[tokio::test]
async fn joining_is_done_when_the_tokens_own_membership_is_there() {
    let control_plane = ControlPlane::start().await;
    let token = token(&control_plane).await;
    control_plane.change(|state| {
        // The membership of an older token holds meanwhile.
        state.meanwhile = Box::new(|progress| {
            if progress.asked == 3 {
                progress.status["generation"] = json!(u64::MAX);
            }
        });
    });
    let ran = on(&control_plane, &["join", &token, "-o", "json"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json()["joined"], true);
    assert_eq!(ran.json()["cluster"], "east");
}

#[tokio::test]
async fn a_join_that_takes_too_long_says_what_it_waits_for() {
    let control_plane = ControlPlane::start().await;
    let token = token(&control_plane).await;
    for (generation, expected) in
        [(json!(1), "it still has the membership of generation 1"), (json!(null), "it has no membership yet")]
    {
        control_plane.change(|state| state.status["generation"] = generation);
        let ran = on(&control_plane, &["join", &token, "--timeout", "300ms"]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (5, ""), "{ran:?}");
        assert_eq!(ran.stderr, format!("isthmus: join mesh.example: not done after 300ms: {expected}\n"));
    }
}

#[tokio::test]
async fn a_refused_join_says_why() {
    let control_plane = ControlPlane::start().await;
    let token = token(&control_plane).await;
    control_plane.change(|state| {
        state.refusal = Some((StatusCode::CONFLICT, json!({"error": "the token is of cluster west"})));
    });
    let ran = on(&control_plane, &["join", &token]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.stderr, "isthmus: control-plane refuses the token: the token is of cluster west\n");
}

#[tokio::test]
async fn what_is_no_token_goes_nowhere() {
    let control_plane = ControlPlane::start().await;
    let token = token(&control_plane).await;
    for wrong in ["", "sesame", "isthmus-join-", &token[..token.len() - 5]] {
        let ran = isthmus(control_plane.socket(), &["join", "-"], wrong).await;
        assert_eq!(ran.code, 1, "{wrong:?}: {ran:?}");
        assert!(ran.stderr.starts_with("isthmus: join token: "), "{ran:?}");
    }
    assert!(control_plane.change(|state| state.tokens.is_empty()));
}

#[tokio::test]
async fn an_export_is_waited_for_until_it_is_accepted() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| {
        state.meanwhile = Box::new(|progress| {
            let conditions: &[(&str, &str, &str, &str)] = match progress.asked {
                1 => &[],
                2 => {
                    &[("Valid", "True", "Valid", ""), ("Ready", "False", "Pending", "the federator has not confirmed")]
                }
                _ => &[
                    ("Valid", "True", "Valid", ""),
                    ("Ready", "True", "Ready", "2 of 3 endpoints are ready"),
                    ("Conflict", "False", "NoConflicts", "all exports agree"),
                ],
            };
            *progress.exports = vec![export_of("shop", "cart", conditions)];
        });
    });
    let ran = on(&control_plane, &["export", "shop/cart"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout, "export shop/cart accepted: Ready=True (Ready): 2 of 3 endpoints are ready\n");
}

#[tokio::test]
async fn an_export_that_is_refused_fails_at_once_and_one_that_hangs_later() {
    let control_plane = ControlPlane::start().await;
    let table = [
        ("Valid", "False", "InvalidServiceType", 1, "Valid=False (InvalidServiceType): because"),
        ("Ready", "False", "Failed", 1, "Ready=False (Failed): because"),
        ("Ready", "False", "Pending", 5, "not done after 300ms: Ready=False (Pending): because"),
    ];
    for (kind, status, reason, code, expected) in table {
        control_plane.change(|state| {
            state.meanwhile = Box::new(move |progress| {
                *progress.exports = vec![export_of("shop", "cart", &[(kind, status, reason, "because")])];
            });
        });
        let ran = on(&control_plane, &["export", "shop/cart", "--timeout", "300ms"]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
        assert!(ran.stderr.contains(expected) && ran.stderr.contains("export shop/cart"), "{ran:?}");
    }
}

#[tokio::test]
async fn nothing_is_waited_for_when_told_so() {
    let control_plane = ControlPlane::start().await;
    let ran = on(&control_plane, &["export", "shop/cart", "--no-wait"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "export shop/cart taken\n"), "{ran:?}");
    assert_eq!(control_plane.change(|state| state.exports.len()), 1);
}

#[tokio::test]
async fn an_unexport_is_done_when_the_export_is_gone() {
    let control_plane = ControlPlane::start().await;
    control_plane.change(|state| {
        state.exports = vec![export_of("shop", "cart", &[]), export_of("shop", "redis", &[])];
        state.meanwhile = Box::new(|progress| {
            if progress.asked == 2 {
                progress.exports.retain(|export| export["name"] != "cart");
            }
        });
    });
    let ran = on(&control_plane, &["unexport", "shop/cart", "-o", "json"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json(), json!({"namespace": "shop", "name": "cart", "exported": false}));

    let ran = on(&control_plane, &["unexport", "shop/none"]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.stderr, "isthmus: control-plane refuses unexport shop/none: there is no such export\n");

    let ran = on(&control_plane, &["unexport", "shop/redis", "--timeout", "200ms"]).await;
    assert_eq!(ran.code, 5, "{ran:?}");
}

#[tokio::test]
async fn a_service_is_named_with_its_namespace() {
    let control_plane = ControlPlane::start().await;
    let ran = on(&control_plane, &["export", "cart"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("<namespace>/<name>"), "{ran:?}");
}
