//! How a program ends.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::fixture::{PATIENCE, SEPARATE, eventually, start};

#[test]
fn a_draining_program_is_alive_but_not_ready_and_ends_when_the_last_hold_is_gone() {
    let runtime = format!("{SEPARATE}, drainDeadline: {}s", PATIENCE.as_secs() * 2);
    let running = start(&runtime, |process| async move {
        process.drain().signaled().await;
        Ok(())
    });
    let hold = running.process.drain().hold();
    eventually("it is ready", || running.health("/readyz").status == 200);
    running.process.trigger_drain();
    let answer = running.health("/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "draining\n"));
    assert_eq!(running.health("/livez").status, 200);
    assert_eq!(running.admin("/metrics").status, 200);
    assert!(!running.has_ended());
    drop(hold);
    assert_eq!(running.end(), ExitCode::SUCCESS);
}

#[test]
fn a_main_that_does_not_return_is_cut_off_at_the_deadline() {
    let running = start(&format!("{SEPARATE}, drainDeadline: 300ms"), |_| std::future::pending());
    let started = Instant::now();
    running.process.trigger_drain();
    assert_eq!(running.process.drain_deadline(), Duration::from_millis(300));
    assert_eq!(running.end(), ExitCode::SUCCESS);
    assert!(started.elapsed() >= Duration::from_millis(300), "not before: {:?}", started.elapsed());
}

#[test]
fn a_hold_that_is_never_dropped_is_cut_off_at_the_deadline() {
    let (send, receive) = std::sync::mpsc::channel();
    let started = Instant::now();
    let running = start(&format!("{SEPARATE}, drainDeadline: 300ms"), |process| async move {
        send.send(process.drain().hold())?;
        Ok(())
    });
    let hold = receive.recv_timeout(PATIENCE).unwrap();
    assert_eq!(running.end(), ExitCode::SUCCESS);
    assert!(started.elapsed() >= Duration::from_millis(300), "not before: {:?}", started.elapsed());
    drop(hold);
}

#[test]
fn a_main_that_returns_by_itself_drains_the_rest() {
    let (send, receive) = std::sync::mpsc::channel();
    let running = start(SEPARATE, |process| async move {
        let (watcher, hold) = (process.drain(), process.drain().hold());
        tokio::spawn(async move {
            watcher.signaled().await;
            send.send(()).unwrap();
            drop(hold);
        });
        Ok(())
    });
    assert_eq!(running.end(), ExitCode::SUCCESS);
    receive.try_recv().unwrap();
}

#[test]
fn a_failing_main_fails_the_process() {
    let failing = start(SEPARATE, |_| async { Err(anyhow::anyhow!("out of luck")) });
    assert_eq!(failing.end(), ExitCode::FAILURE);
}

#[test]
fn an_error_while_draining_fails_the_process() {
    let running = start(SEPARATE, |process| async move {
        process.drain().signaled().await;
        Err(anyhow::anyhow!("could not write the last state"))
    });
    running.process.trigger_drain();
    assert_eq!(running.end(), ExitCode::FAILURE);
}
