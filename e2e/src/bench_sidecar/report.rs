//! The columns and the goals.

use super::{measure::Figures, pairs::Pair};
use crate::bench::Goal;
use crate::bench::comparison::{Column, Comparison, Figure};

/// What all rounds have shown.
pub(super) type Report = Comparison<Pair, Figures>;

/// What is measured.
pub(super) const COLUMNS: &[Column<Figures>] = &[
    ("HTTP/1.1 CPU µs", |figures| figures.http1_cpu, 1),
    ("requests/s", |figures| figures.http1_rate, 0),
    ("HTTP/2 CPU µs", |figures| figures.http2_cpu, 1),
    ("requests/s", |figures| figures.http2_rate, 0),
    ("at 1,500/s: CPU µs", |figures| figures.paced_cpu, 0),
    ("p50 µs", |figures| figures.paced_p50, 0),
    ("p99 µs", |figures| figures.paced_p99, 0),
    ("connection each: CPU µs", |figures| figures.churn_cpu, 0),
    ("requests/s", |figures| figures.churn_rate, 0),
    ("bulk CPU s/GB", |figures| figures.bulk_cpu, 2),
    ("GB/s", |figures| figures.bulk_rate, 2),
    ("idle MiB", |figures| figures.idle_memory, 1),
    ("KiB/idle connection", |figures| figures.connection_memory, 1),
];

/// The goals, and what is wished for beyond them.
pub(super) fn goals(report: &Report) -> Vec<Goal> {
    let (http1, http2): (Figure<Figures>, Figure<Figures>) = (|it| it.http1_cpu, |it| it.http2_cpu);
    let own = Pair::Isthmus;
    vec![
        Goal::new("http1_cpu_vs_envoy", report.ratio(own, Pair::Envoy, http1), 0.5),
        Goal::stretch("http1_cpu_vs_haproxy", report.ratio(own, Pair::Haproxy, http1), 1.0),
        Goal::new("http2_cpu_vs_envoy", report.ratio(own, Pair::Envoy, http2), 0.6),
        Goal::stretch("http2_cpu_vs_haproxy", report.ratio(own, Pair::Haproxy, http2), 1.0),
        Goal::new("tcp_cpu_vs_best_tcp", report.against_best(Pair::IsthmusTcp, http1, |it| !it.is_http()), 0.9),
        Goal::new("cpu_at_1500_vs_best", report.against_best(own, |it| it.paced_cpu, |_| true), 1.0),
        Goal::new("added_p50_at_1500_vs_best", report.added_against_best(own, |it| it.paced_p50), 1.0),
        Goal::new("connection_per_request_cpu_us", report.median(own, |it| it.churn_cpu), 130.0),
        Goal::new("bulk_cpu_s_per_gb", worst_own(report, |it| it.bulk_cpu), 2.0),
        Goal::new("idle_mib", worst_own(report, |it| it.idle_memory), 10.0),
        Goal::new("idle_connection_kib", worst_own(report, |it| it.connection_memory), 8.0),
    ]
}

fn worst_own(report: &Report, figure: Figure<Figures>) -> Option<f64> {
    let values = [Pair::Isthmus, Pair::IsthmusTcp].into_iter().filter_map(|pair| report.median(pair, figure));
    values.max_by(f64::total_cmp)
}
