//! Medians, the table, the plot, the goals.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::measure::Figures;
use super::peers::Peer;
use crate::bench::{Goal, median, replace_table};

/// What all rounds have shown.
#[derive(Default)]
pub(super) struct Report(BTreeMap<Peer, Vec<Figures>>);

/// One figure of a visit.
type Figure = fn(&Figures) -> f64;

/// Heading, figure, and digits after the point.
const COLUMNS: [(&str, Figure, usize); 15] = [
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

impl Figures {
    /// For the screen, while the bench runs.
    pub(super) fn line(&self, peer: Peer) -> String {
        let mut line = format!("{:14}", peer.name());
        for (heading, figure, digits) in COLUMNS {
            let _ = write!(line, " | {heading} {:.digits$}", figure(self));
        }
        line
    }
}

impl Report {
    pub(super) fn add(&mut self, peer: Peer, figures: Figures) {
        self.0.entry(peer).or_default().push(figures);
    }

    fn median(&self, peer: Peer, figure: Figure) -> Option<f64> {
        median(self.0.get(&peer)?.iter().map(figure).collect())
    }

    /// Ratios are taken within each round and then their median: what a round's disturbance does to both cancels out.
    fn ratio(&self, peer: Peer, figure: Figure) -> Option<f64> {
        let (own, others) = (self.0.get(&Peer::Gateway)?, self.0.get(&peer)?);
        let ratios = own.iter().zip(others).map(|(own, other)| figure(own) / figure(other)).collect();
        // Of a load that was left out there is none.
        median(ratios).filter(|ratio| ratio.is_finite())
    }

    /// Against the rival that is best by its median.
    fn against_best(&self, figure: Figure) -> Option<f64> {
        let rivals = self.0.keys().copied().filter(|peer| peer.is_rival());
        let best =
            rivals.filter_map(|peer| Some((self.median(peer, figure)?, peer))).min_by(|a, b| a.0.total_cmp(&b.0))?;
        self.ratio(best.1, figure)
    }

    /// What the proxy adds to the latency without one, against the rival that adds least.
    fn added_against_best(&self, figure: Figure) -> Option<f64> {
        let direct = self.median(Peer::Direct, figure)?;
        let added = |peer| Some(self.median(peer, figure)? - direct);
        let rivals = self.0.keys().copied().filter(|peer| peer.is_rival());
        let best = rivals.filter_map(added).min_by(f64::total_cmp)?;
        // A machine so busy that a proxy seems to add nothing has measured nothing.
        (best > 0.0).then_some(added(Peer::Gateway)? / best)
    }

    /// The goals, in the order of the table.
    pub(super) fn goals(&self) -> Vec<Goal> {
        let goal = |name: &str, value, limit| Goal::new(name, value, limit);
        vec![
            goal("bulk_cpu_vs_haproxy_splice", self.ratio(Peer::HaproxySplice, |figures| figures.bulk_cpu), 1.0),
            goal("bulk_cpu_vs_bare_splice", self.ratio(Peer::BareSplice, |figures| figures.bulk_cpu), 1.15),
            goal("connection_cpu_vs_nginx", self.ratio(Peer::Nginx, |figures| figures.connection_cpu), 0.95),
            goal("tls_connection_cpu_vs_nginx", self.ratio(Peer::Nginx, |figures| figures.tls_connection_cpu), 0.95),
            goal("message_cpu_saturated_vs_best", self.against_best(|figures| figures.saturated_cpu), 0.95),
            goal("message_cpu_at_2000_vs_best", self.against_best(|figures| figures.paced_cpu), 0.95),
            goal("message_added_p50_vs_best", self.added_against_best(|figures| figures.paced_p50), 1.0),
            goal("message_added_p99_vs_best", self.added_against_best(|figures| figures.paced_p99), 1.0),
            goal("idle_kib_per_connection", self.median(Peer::Gateway, |figures| figures.idle_memory), 2.0),
            goal("idle_cpu_ms_per_s", self.median(Peer::Gateway, |figures| figures.idle_cpu), 1.0),
        ]
    }

    /// Medians, in Markdown.
    pub(super) fn table(&self) -> String {
        let mut table = String::from("| |");
        for (heading, ..) in COLUMNS {
            let _ = write!(table, " {heading} |");
        }
        let _ = write!(table, "\n| --- |{}", " ---: |".repeat(COLUMNS.len()));
        for peer in self.0.keys() {
            let _ = write!(table, "\n| {} |", peer.name());
            for (_, figure, digits) in COLUMNS {
                let _ = match self.median(*peer, figure) {
                    Some(value) if value.is_finite() && value > 0.0 => write!(table, " {value:.digits$} |"),
                    _ => write!(table, " – |"),
                };
            }
        }
        table + "\n"
    }

    /// All figures of all rounds by peer, and the goals.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        let rounds = |figures: &Vec<Figures>| -> Vec<serde_json::Value> {
            figures.iter().map(|figures| COLUMNS.iter().map(|(_, figure, _)| figure(figures)).collect()).collect()
        };
        let peers: serde_json::Map<_, _> =
            self.0.iter().map(|(peer, figures)| (peer.name().to_owned(), rounds(figures).into())).collect();
        let goals: Vec<_> = self.goals().iter().map(Goal::json).collect();
        let columns = COLUMNS.map(|(name, ..)| name);
        serde_json::to_string_pretty(&serde_json::json!({ "columns": columns, "rounds": peers, "goals": goals }))
    }

    /// Puts the table in the place of the one that follows the marker.
    pub(super) fn write_into(&self, path: &Path) -> anyhow::Result<()> {
        replace_table(path, "bench-gateway", &self.table())
    }

    /// Bars of what each costs, in SVG.
    pub(super) fn plot(&self) -> String {
        let panels: [(&str, Figure); 5] = [
            ("bulk: CPU-seconds per GB", |figures| figures.bulk_cpu),
            ("new connection: CPU µs", |figures| figures.connection_cpu),
            ("small message, saturated: CPU µs", |figures| figures.saturated_cpu),
            ("small message at 2,000/s: CPU µs", |figures| figures.paced_cpu),
            ("idle connection: KiB", |figures| figures.idle_memory),
        ];
        let peers: Vec<Peer> = self.0.keys().copied().filter(|peer| *peer != Peer::Direct).collect();
        let (row, mut y) = (18, 0);
        let mut bars = String::new();
        for (title, figure) in panels {
            y += 30;
            let _ = writeln!(bars, "<text x='8' y='{y}' font-weight='bold'>{title}</text>");
            let values: Vec<f64> = peers.iter().map(|peer| self.median(*peer, figure).unwrap_or(0.0)).collect();
            let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
            // What was not measured has no bar.
            for (peer, value) in peers.iter().zip(values).filter(|(_, value)| *value > 0.0) {
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
}
