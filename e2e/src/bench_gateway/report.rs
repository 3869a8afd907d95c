//! The columns, the goals, the plot.

use std::fmt::Write;

use super::measure::Figures;
use super::peers::Peer;
use crate::bench::Goal;
use crate::bench::comparison::{Column, Comparison, Figure, Peer as _};

/// What all rounds have shown.
pub(super) type Report = Comparison<Peer, Figures>;

/// What is measured.
pub(super) const COLUMNS: &[Column<Figures>] = &[
    ("bulk CPU s/GB", |figures| figures.bulk_cpu, 3),
    ("GB/s", |figures| figures.bulk_rate, 2),
    ("CPU µs/connection", |figures| figures.connection_cpu, 1),
    ("connections/s", |figures| figures.connection_rate, 0),
    ("TLS bulk CPU s/GB", |figures| figures.tls_bulk_cpu, 3),
    ("GB/s", |figures| figures.tls_bulk_rate, 2),
    ("TLS CPU µs/connection", |figures| figures.tls_connection_cpu, 1),
    ("connections/s", |figures| figures.tls_connection_rate, 0),
    ("CPU µs/message, saturated", |figures| figures.saturated_cpu, 2),
    ("messages/s", |figures| figures.saturated_rate, 0),
    ("CPU µs/message at 2,000/s", |figures| figures.paced_cpu, 1),
    ("p50 µs", |figures| figures.paced_p50, 0),
    ("p99 µs", |figures| figures.paced_p99, 0),
    ("idle KiB/connection", |figures| figures.idle_memory, 2),
    ("idle CPU ms/s", |figures| figures.idle_cpu, 2),
];

/// The goals, in the order of the table.
pub(super) fn goals(report: &Report) -> Vec<Goal> {
    let own = Peer::Gateway;
    vec![
        Goal::new(
            "bulk_cpu_vs_haproxy_splice",
            report.ratio(own, Peer::HaproxySplice, |figures| figures.bulk_cpu),
            1.0,
        ),
        Goal::new("bulk_cpu_vs_bare_splice", report.ratio(own, Peer::BareSplice, |figures| figures.bulk_cpu), 1.15),
        Goal::new("connection_cpu_vs_nginx", report.ratio(own, Peer::Nginx, |figures| figures.connection_cpu), 0.95),
        Goal::new(
            "tls_connection_cpu_vs_nginx",
            report.ratio(own, Peer::Nginx, |figures| figures.tls_connection_cpu),
            0.95,
        ),
        Goal::new(
            "message_cpu_saturated_vs_best",
            report.against_best(own, |figures| figures.saturated_cpu, |_| true),
            0.95,
        ),
        Goal::new("message_cpu_at_2000_vs_best", report.against_best(own, |figures| figures.paced_cpu, |_| true), 0.95),
        Goal::new("message_added_p50_vs_best", report.added_against_best(own, |figures| figures.paced_p50), 1.0),
        Goal::new("message_added_p99_vs_best", report.added_against_best(own, |figures| figures.paced_p99), 1.0),
        Goal::new("idle_kib_per_connection", report.median(own, |figures| figures.idle_memory), 2.0),
        Goal::new("idle_cpu_ms_per_s", report.median(own, |figures| figures.idle_cpu), 1.0),
    ]
}

/// Bars of what each costs, in SVG.
pub(super) fn plot(report: &Report) -> String {
    let panels: [(&str, Figure<Figures>); 5] = [
        ("bulk: CPU-seconds per GB", |figures| figures.bulk_cpu),
        ("new connection: CPU µs", |figures| figures.connection_cpu),
        ("small message, saturated: CPU µs", |figures| figures.saturated_cpu),
        ("small message at 2,000/s: CPU µs", |figures| figures.paced_cpu),
        ("idle connection: KiB", |figures| figures.idle_memory),
    ];
    let peers: Vec<Peer> = report.peers().filter(|peer| *peer != Peer::Direct).collect();
    let (row, mut y) = (18, 0);
    let mut bars = String::new();
    for (title, figure) in panels {
        y += 30;
        let _ = writeln!(bars, "<text x='8' y='{y}' font-weight='bold'>{title}</text>");
        let values: Vec<Option<f64>> = peers.iter().map(|peer| report.median(*peer, figure)).collect();
        let most = values.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
        // What was not measured has no bar.
        for (peer, value) in peers.iter().zip(values).filter_map(|(peer, value)| Some((peer, value?))) {
            y += row;
            let color = if *peer == Peer::Gateway { "#1f77b4" } else { "#b0b0b0" };
            let width = 400.0 * value / most;
            let _ = writeln!(bars, "<text x='130' y='{y}' text-anchor='end'>{}</text>", peer.name());
            let _ = writeln!(bars, "<rect x='138' y='{}' width='{width:.0}' height='13' fill='{color}'/>", y - 11);
            let _ = writeln!(bars, "<text x='{:.0}' y='{y}'>{value:.2}</text>", 144.0 + width);
        }
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='640' height='{}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n{bars}</svg>\n",
        y + 20
    )
}
