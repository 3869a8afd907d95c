//! Medians, the table, the goals.

use std::{collections::BTreeMap, fmt::Write};

use super::{measure::Figures, pairs::Pair};
use crate::bench::{Goal, commit, median};

/// What all rounds have shown.
#[derive(Default)]
pub(super) struct Report(BTreeMap<Pair, Vec<Figures>>);

/// One figure of a visit.
type Figure = fn(&Figures) -> f64;

/// Heading, figure, and digits after the point.
const COLUMNS: [(&str, Figure, usize); 13] = [
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

impl Figures {
    /// For the screen, while the bench runs.
    pub(super) fn line(&self, pair: Pair) -> String {
        let mut line = format!("{:12}", pair.name());
        for (heading, figure, digits) in COLUMNS {
            let _ = write!(line, " | {heading} {:.digits$}", figure(self));
        }
        line
    }
}

impl Report {
    pub(super) fn add(&mut self, pair: Pair, figures: Figures) {
        self.0.entry(pair).or_default().push(figures);
    }

    /// Of a load that was left out there is none.
    fn median(&self, pair: Pair, figure: Figure) -> Option<f64> {
        median(self.0.get(&pair)?.iter().map(figure).collect()).filter(|value| value.is_finite() && *value > 0.0)
    }

    /// Ratios are taken within each round and then their median: what a round's disturbance does to both cancels out.
    fn ratio(&self, own: Pair, other: Pair, figure: Figure) -> Option<f64> {
        let (own, others) = (self.0.get(&own)?, self.0.get(&other)?);
        let ratios = own.iter().zip(others).map(|(own, other)| figure(own) / figure(other)).collect();
        median(ratios).filter(|ratio| ratio.is_finite() && *ratio > 0.0)
    }

    /// Against the best of some rivals by its median.
    fn against_best(&self, own: Pair, figure: Figure, among: impl Fn(Pair) -> bool) -> Option<f64> {
        let rivals = self.0.keys().copied().filter(|pair| pair.is_rival() && among(*pair));
        let best = rivals.filter_map(|pair| Some((self.median(pair, figure)?, pair)));
        self.ratio(own, best.min_by(|a, b| a.0.total_cmp(&b.0))?.1, figure)
    }

    /// What the pair adds to the latency without one, against the rival that adds least.
    fn added_against_best(&self, own: Pair, figure: Figure) -> Option<f64> {
        let direct = self.median(Pair::Direct, figure)?;
        let added = |pair| Some(self.median(pair, figure)? - direct);
        let rivals = self.0.keys().copied().filter(|pair| pair.is_rival());
        let best = rivals.filter_map(added).min_by(f64::total_cmp)?;
        // A machine so busy that a pair seems to add nothing has measured nothing.
        (best > 0.0).then_some(added(own)? / best)
    }

    fn worst_own(&self, figure: Figure) -> Option<f64> {
        let values = [Pair::Isthmus, Pair::IsthmusTcp].into_iter().filter_map(|pair| self.median(pair, figure));
        values.max_by(f64::total_cmp)
    }

    /// The goals, and what is wished for beyond them.
    pub(super) fn goals(&self) -> Vec<Goal> {
        let (http1, http2): (Figure, Figure) = (|it| it.http1_cpu, |it| it.http2_cpu);
        let own = Pair::Isthmus;
        vec![
            Goal::new("http1_cpu_vs_envoy", self.ratio(own, Pair::Envoy, http1), 0.5),
            Goal::stretch("http1_cpu_vs_haproxy", self.ratio(own, Pair::Haproxy, http1), 1.0),
            Goal::new("http2_cpu_vs_envoy", self.ratio(own, Pair::Envoy, http2), 0.6),
            Goal::stretch("http2_cpu_vs_haproxy", self.ratio(own, Pair::Haproxy, http2), 1.0),
            Goal::new("tcp_cpu_vs_best_tcp", self.against_best(Pair::IsthmusTcp, http1, |it| !it.is_http()), 0.9),
            Goal::new("cpu_at_1500_vs_best", self.against_best(own, |it| it.paced_cpu, |_| true), 1.0),
            Goal::new("added_p50_at_1500_vs_best", self.added_against_best(own, |it| it.paced_p50), 1.0),
            Goal::new("connection_per_request_cpu_us", self.median(own, |it| it.churn_cpu), 130.0),
            Goal::new("bulk_cpu_s_per_gb", self.worst_own(|it| it.bulk_cpu), 2.0),
            Goal::new("idle_mib", self.worst_own(|it| it.idle_memory), 10.0),
            Goal::new("idle_connection_kib", self.worst_own(|it| it.connection_memory), 8.0),
        ]
    }

    /// Medians, in Markdown.
    pub(super) fn table(&self) -> String {
        let mut table = String::from("| |");
        for (heading, ..) in COLUMNS {
            let _ = write!(table, " {heading} |");
        }
        let _ = write!(table, "\n| --- |{}", " ---: |".repeat(COLUMNS.len()));
        for pair in self.0.keys() {
            let _ = write!(table, "\n| {} |", pair.name());
            for (_, figure, digits) in COLUMNS {
                let _ = match self.median(*pair, figure) {
                    Some(value) => write!(table, " {value:.digits$} |"),
                    None => write!(table, " – |"),
                };
            }
        }
        table + "\n"
    }

    /// All figures of all rounds by pair, and the goals.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        let rounds = |figures: &Vec<Figures>| -> Vec<serde_json::Value> {
            figures.iter().map(|figures| COLUMNS.iter().map(|(_, figure, _)| figure(figures)).collect()).collect()
        };
        let pairs: serde_json::Map<_, _> =
            self.0.iter().map(|(pair, figures)| (pair.name().to_owned(), rounds(figures).into())).collect();
        let goals: Vec<_> = self.goals().iter().map(Goal::json).collect();
        let columns = COLUMNS.map(|(name, ..)| name);
        serde_json::to_string_pretty(
            &serde_json::json!({ "commit": commit(), "columns": columns, "rounds": pairs, "goals": goals }),
        )
    }
}
