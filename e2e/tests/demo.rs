//! `make demo` itself, as a user runs it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::{Duration, Instant};

/// What the demo promises after its build.
const LONGEST: Duration = Duration::from_secs(90);

#[test]
fn the_demo_ends_well_and_in_time() {
    e2e::lab::binaries::Binaries::build().unwrap();
    let started = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).output().unwrap();
    let (told, time) = (String::from_utf8_lossy(&output.stdout), started.elapsed());
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!told.contains('\x1b'), "colours although nobody watches");
    for row in [
        "local endpoints killed",
        "one of two gateways killed",
        "whole cluster killed",
        "federator and trust-bundle killed",
    ] {
        assert!(told.lines().any(|line| line.starts_with(row)), "no row for {row:?} in\n{told}");
    }
    // Other tests share the two cores; alone it must keep its promise.
    assert!(time < LONGEST * 2, "took {time:?}");
}
