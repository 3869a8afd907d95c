//! The admin and health listeners.

use std::io::Read;
use std::net::TcpStream;

use axum::Router;
use axum::routing::get;
use prometheus_client::metrics::counter::Counter;

use crate::fixture::{PATIENCE, Running, SEPARATE, eventually, start};

fn idle(runtime: &str) -> Running {
    let running = start(runtime, |process| async move {
        process.drain().signaled().await;
        Ok(())
    });
    eventually("it is ready", || running.health("/readyz").status == 200);
    running
}

/// The value of the sample that has exactly this name and these labels.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn metrics_are_openmetrics_under_the_programs_prefix() {
    let running = idle(SEPARATE);
    let counter = Counter::<u64>::default();
    counter.inc_by(3);
    running.process.register(|registry| registry.register("things", "Things seen", counter.clone()));
    let answer = running.admin("/metrics");
    assert_eq!(answer.status, 200);
    let content_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(content_type), "{}", answer.head);
    assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
    assert_eq!(sample(&answer.body, "isthmus_a_fixture_things_total"), Some(3.0));
    assert!(answer.body.contains("isthmus_build_info{program=\"a-fixture\",version=\"0.1.0\"} 1"), "{}", answer.body);
    let at_least_one = [
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
        "isthmus_a_fixture_runtime_tasks",
        "isthmus_a_fixture_runtime_workers",
    ];
    for name in at_least_one {
        assert!(sample(&answer.body, name).is_some_and(|value| value >= 1.0), "{name} in {}", answer.body);
    }
    assert!(sample(&answer.body, "process_cpu_seconds_total").is_some_and(|value| value >= 0.0), "{}", answer.body);
    // 2020-01-01: well after the epoch, before any test.
    assert!(sample(&answer.body, "process_start_time_seconds").is_some_and(|value| value > 1_577_836_800.0));
    let families: Vec<_> = answer.body.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let mut unique = families.clone();
    unique.dedup();
    assert_eq!(families, unique, "each family is declared once");
}

#[test]
fn open_descriptors_are_counted() {
    let running = idle(SEPARATE);
    let files: Vec<_> = (0..200).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    let text = running.admin("/metrics").body;
    let (open, most) = (sample(&text, "process_open_fds").unwrap(), sample(&text, "process_max_fds").unwrap());
    // No upper bound of their own: other tests of this process open some too.
    assert!((200.0..=most).contains(&open), "{open} of {most}");
    drop(files);
}

#[test]
fn debug_routes_appear_when_they_are_added_and_the_later_answers() {
    let running = idle(SEPARATE);
    assert_eq!(running.admin("/debug/state").status, 404);
    running.process.add_debug_routes(Router::new().route("/debug/state", get(|| async { "first" })));
    assert_eq!(running.admin("/debug/state").body, "first");
    let later = Router::new().route("/debug/state", get(|| async { "second" })).route("/metrics", get(|| async { "" }));
    running.process.add_debug_routes(later);
    running.process.add_debug_routes(Router::new().route("/debug/other", get(|| async { "other" })));
    assert_eq!(running.admin("/debug/state").body, "second");
    assert_eq!(running.admin("/debug/other").body, "other");
    assert!(running.admin("/metrics").body.ends_with("# EOF\n"), "the runtime's own routes stay");
    assert_eq!(running.admin("/debug/none").status, 404);
    assert_eq!(running.health("/debug/state").status, 404, "not on the health listener");
}

#[test]
fn each_listener_serves_its_own_paths() {
    let running = idle(SEPARATE);
    assert_ne!(running.process.admin_address(), running.process.health_address());
    assert_eq!(running.health("/livez").status, 200);
    assert_eq!(running.health("/metrics").status, 404);
    assert_eq!(running.admin("/readyz").status, 404);
}

#[test]
fn one_address_serves_both() {
    let running = idle("admin: 127.0.0.1:0, health: 127.0.0.1:0");
    assert_eq!(running.process.admin_address(), running.process.health_address());
    running.process.add_debug_routes(Router::new().route("/debug/state", get(|| async { "state" })));
    for (path, status) in [("/metrics", 200), ("/readyz", 200), ("/livez", 200), ("/debug/state", 200), ("/x", 404)] {
        assert_eq!(running.admin(path).status, status, "{path}");
    }
}

#[test]
fn silent_clients_do_not_keep_others_out_and_the_oldest_make_room() {
    let running = idle(SEPARATE);
    let address = running.process.health_address().unwrap();
    let mut silent: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    for _ in 0..20 {
        assert_eq!(running.health("/livez").status, 200);
    }
    let oldest = &mut silent[0];
    oldest.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(oldest.read(&mut [0]).unwrap(), 0, "closed by the server");
}
