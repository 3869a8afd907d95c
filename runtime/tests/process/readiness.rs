//! What `/readyz` says.

use std::sync::mpsc;

use crate::fixture::{PATIENCE, SEPARATE, eventually, start};

#[test]
fn a_probe_never_sees_a_program_ready_that_has_not_said_what_it_waits_for() {
    let (go, gone) = mpsc::channel();
    let running = start(SEPARATE, move |process| {
        // Slow to start: nothing is awaited yet, nothing is required yet.
        gone.recv_timeout(PATIENCE).unwrap();
        async move {
            let first = process.readiness().require("first state");
            process.drain().signaled().await;
            drop(first);
            Ok(())
        }
    });
    let answer = running.health("/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "waiting for the program's start\n"));
    assert_eq!(running.health("/livez").status, 200);
    go.send(()).unwrap();
    eventually("it waits for its first state", || {
        let answer = running.health("/readyz");
        assert_eq!(answer.status, 503);
        answer.body == "waiting for first state\n"
    });
}

#[test]
fn everything_that_is_waited_for_is_listed_until_it_has_come() {
    let running = start(SEPARATE, |process| async move {
        process.drain().signaled().await;
        Ok(())
    });
    let state = running.process.readiness().require("first state");
    let certificate = running.process.readiness().require("certificate");
    eventually("it has started", || {
        running.health("/readyz").body == "waiting for first state\nwaiting for certificate\n"
    });
    state.ready();
    let answer = running.health("/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "waiting for certificate\n"));
    drop(certificate);
    let answer = running.health("/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));
    let again = running.process.readiness().require("a new listener");
    assert_eq!(running.health("/readyz").status, 503);
    drop(again);
}
