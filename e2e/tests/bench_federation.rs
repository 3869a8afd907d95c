//! The bench of the federator, small: it runs to its end, loses nothing, and says what became of each goal.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use e2e::lab::binaries::Binaries;

#[test]
fn the_bench_of_the_federator_measures_every_goal() {
    Binaries::build_only(&["federator"]).unwrap();
    let sizes = ["--clusters", "20", "--exports", "5", "--rate", "20", "--seconds", "3"];
    let output = Command::new(env!("CARGO_BIN_EXE_bench_federation")).args(sizes).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    for (goal, sure) in [
        ("federation_bytes_per_export", ""),
        ("federation_kib_per_session", ""),
        ("federation_etcd_watchers_per_replica", "1.000 1 met"),
        ("federation_propagation_p99_ms", ""),
    ] {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("goal: {goal} ")));
        let line = line.unwrap_or_else(|| panic!("no goal {goal} in {text}"));
        // What such a small federation shows of memory and time is nothing to rely on.
        assert!(line.starts_with(sure) && !line.contains("unmeasured"), "{line} in {text}");
    }
    assert!(text.contains("60 at 20/s") && text.contains("; 0 unfinished"), "every change arrived: {text}");
    assert!(text.contains("10 sessions current again at the other one"), "{text}");
}
