//! Signals, exit codes, and what stderr says.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::child::{Ended, Program};
use crate::fixture::{SEPARATE, eventually, request};

fn config(yaml: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("child.yaml");
    std::fs::write(&file, yaml).unwrap();
    (directory, file)
}

/// The lines on stderr that are the program's own complaints, not logs.
fn complaints(ended: &Ended) -> Vec<&str> {
    ended.stderr.lines().filter_map(|line| line.strip_prefix("a-child: ")).collect()
}

#[test]
fn either_signal_drains_and_ends_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_directory, file) = config(&format!("runtime: {{ {SEPARATE} }}"));
        let mut program = Program::start(&file, "drain");
        let health = program.health_address();
        eventually("it is ready", || request(health, "/readyz").status == 200);
        program.signal(signal);
        let ended = program.end();
        assert_eq!(ended.code, Some(0), "{signal:?}: {}", ended.stderr);
        assert!(complaints(&ended).is_empty(), "{}", ended.stderr);
    }
}

#[test]
fn a_second_signal_ends_even_a_stuck_program_at_once() {
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (_directory, file) = config(&format!("runtime: {{ {SEPARATE}, drainDeadline: 1h }}"));
        let mut program = Program::start(&file, "stuck");
        program.wait_for("health=");
        program.signal(Signal::TERM);
        program.wait_for("draining");
        program.signal(second);
        let ended = program.end();
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
    }
}

#[test]
fn an_error_of_main_is_one_line_with_its_causes() {
    let (_directory, file) = config(&format!("runtime: {{ {SEPARATE} }}"));
    let ended = Program::start(&file, "fail").end();
    assert_eq!(ended.code, Some(1));
    assert_eq!(complaints(&ended), ["the disk is gone"], "{}", ended.stderr);
}

#[test]
fn logs_are_json_lines_on_stderr_panics_included() {
    let (_directory, file) = config(&format!("runtime: {{ {SEPARATE}, log: {{ format: json }} }}"));
    let ended = Program::start(&file, "panic").end();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(complaints(&ended), ["main panicked"], "{}", ended.stderr);
    let logs: Vec<serde_json::Value> = ended
        .stderr
        .lines()
        .filter(|line| !line.starts_with("a-child: "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let panic = logs.iter().find(|line| line["level"] == "ERROR").unwrap();
    assert_eq!(panic["message"], "panicked: a mistake of ours");
    assert!(panic["location"].as_str().unwrap().contains("child.rs:"), "{panic}");
    assert!(logs.iter().any(|line| line["message"] == "started" && line["program"] == "a-child"), "{logs:?}");
}

#[test]
fn the_filter_decides_what_is_logged() {
    let (_directory, file) = config(&format!("runtime: {{ {SEPARATE}, log: {{ filter: error }} }}"));
    let mut program = Program::start(&file, "drain");
    program.wait_for("health=");
    program.signal(Signal::TERM);
    let ended = program.end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_refused_configuration_ends_with_two_and_a_line_for_every_problem() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (_directory, file) =
        config(&format!("runtime: {{ admin: '{address}', helth: '{address}', drainDeadline: 5 }}"));
    let ended = Program::start(&file, "drain").end();
    assert_eq!(ended.code, Some(2));
    let complaints = complaints(&ended);
    let file = file.display();
    assert_eq!(complaints.len(), 2, "no complaint about the address, which is not even tried: {complaints:?}");
    assert!(complaints[0].starts_with(&format!("{file}: runtime.drainDeadline: ")), "{complaints:?}");
    assert!(complaints[1].starts_with(&format!("{file}: runtime.helth: is not a known field")), "{complaints:?}");
}

#[test]
fn an_address_in_use_is_one_line_naming_field_and_address() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (fields, named) in [
        (format!("admin: '{address}', health: 127.0.0.1:0"), "runtime.admin"),
        (format!("admin: 127.0.0.1:0, health: '{address}'"), "runtime.health"),
        (format!("admin: '{address}', health: '{address}'"), "runtime.admin and runtime.health"),
    ] {
        let (_directory, file) = config(&format!("runtime: {{ {fields} }}"));
        let ended = Program::start(&file, "drain").end();
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected = format!("{named}: cannot listen on {address}: Address already in use (os error 98)");
        assert_eq!(complaints(&ended), [expected], "{}", ended.stderr);
    }
}

#[test]
fn an_absent_or_silent_collector_is_logged_and_delays_the_end_only_briefly() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let absent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (collector, log) in [
        (absent, "spans cannot be exported"),
        (silent.local_addr().unwrap(), "the last spans may not have been exported"),
    ] {
        let (_directory, file) =
            config(&format!("runtime: {{ {SEPARATE}, otlp: {{ endpoint: 'http://{collector}' }} }}"));
        let mut program = Program::start(&file, "trace");
        program.wait_for("health=");
        let started = Instant::now();
        let ended = program.end();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}: {}", started.elapsed(), ended.stderr);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains(log), "{}", ended.stderr);
    }
}
