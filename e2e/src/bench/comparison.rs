//! Peers under the same loads in turn, and what their figures say of each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{Goal, commit, median};

/// What is compared: a program, or none.
pub(crate) trait Peer: Copy + Ord + 'static {
    /// All of them, in the order of visits.
    const ALL: &'static [Self];
    /// Nothing in between.
    const DIRECT: Self;

    /// For tables and `--only`.
    fn name(self) -> &'static str;

    /// Whether it is somebody else's that does the same job.
    fn is_rival(self) -> bool;
}

/// One figure of a visit; `None` when it was not measured.
pub(crate) type Figure<F> = fn(&F) -> Option<f64>;

/// Heading, figure, and digits after the point.
pub(crate) type Column<F> = (&'static str, Figure<F>, usize);

/// What all rounds have shown.
pub(crate) struct Comparison<P, F: 'static> {
    columns: &'static [Column<F>],
    rounds: BTreeMap<P, Vec<F>>,
}

impl<P: Peer, F> Comparison<P, F> {
    /// Visits in turn those peers that are named, or all, and that are there; every second round goes backwards. A visit that fails is made
    /// once more: the machine may have been busy with something else.
    pub(crate) fn of_rounds(
        columns: &'static [Column<F>],
        rounds: usize,
        only: &[String],
        available: impl Fn(P) -> anyhow::Result<()>,
        visit: impl Fn(P) -> anyhow::Result<F>,
    ) -> anyhow::Result<Self> {
        let chosen = |peer: &P| only.is_empty() || only.iter().any(|name| name == peer.name());
        let mut peers: Vec<P> = P::ALL.iter().copied().filter(chosen).collect();
        peers.retain(|peer| match available(*peer) {
            Ok(()) => true,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{} is left out: {error:#}", peer.name());
                false
            }
        });
        let mut comparison = Self { columns, rounds: BTreeMap::new() };
        for round in 1..=rounds {
            for peer in &peers {
                let figures = visit(*peer).or_else(|error| {
                    let _ = writeln!(std::io::stderr(), "{}: once more, since {error:#}", peer.name());
                    visit(*peer).with_context(|| format!("visiting {}", peer.name()))
                })?;
                writeln!(std::io::stdout(), "round {round} {:14}{}", peer.name(), comparison.line(&figures))?;
                comparison.rounds.entry(*peer).or_default().push(figures);
            }
            peers.reverse();
        }
        Ok(comparison)
    }

    fn line(&self, figures: &F) -> String {
        let shown = |(heading, figure, digits): &Column<F>| format!(" | {heading} {}", shown(figure(figures), *digits));
        self.columns.iter().map(shown).collect()
    }

    /// Those that were visited.
    pub(crate) fn peers(&self) -> impl Iterator<Item = P> {
        self.rounds.keys().copied()
    }

    pub(crate) fn median(&self, peer: P, figure: Figure<F>) -> Option<f64> {
        median(self.rounds.get(&peer)?.iter().filter_map(figure).collect())
    }

    /// Ratios are taken within each round and then their median: what a round's disturbance does to both cancels out.
    pub(crate) fn ratio(&self, own: P, other: P, figure: Figure<F>) -> Option<f64> {
        let (own, others) = (self.rounds.get(&own)?, self.rounds.get(&other)?);
        let ratios = own.iter().zip(others).filter_map(|(own, other)| Some(figure(own)? / figure(other)?));
        median(ratios.filter(|ratio| ratio.is_finite()).collect())
    }

    /// Against the rival, of those admitted, that is best by its median.
    pub(crate) fn against_best(&self, own: P, figure: Figure<F>, among: impl Fn(P) -> bool) -> Option<f64> {
        let rivals = self.peers().filter(|peer| peer.is_rival() && among(*peer));
        let best = rivals.filter_map(|peer| Some((self.median(peer, figure)?, peer)));
        self.ratio(own, best.min_by(|a, b| a.0.total_cmp(&b.0))?.1, figure)
    }

    /// What is added to the latency without anything in between, against the rival that adds least.
    pub(crate) fn added_against_best(&self, own: P, figure: Figure<F>) -> Option<f64> {
        let direct = self.median(P::DIRECT, figure)?;
        let added = |peer| Some(self.median(peer, figure)? - direct);
        let best = self.peers().filter(|peer| peer.is_rival()).filter_map(added).min_by(f64::total_cmp)?;
        // A machine so busy that a rival seems to add nothing has measured nothing.
        (best > 0.0).then_some(added(own)? / best)
    }

    /// Medians, in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| |");
        for (heading, ..) in self.columns {
            let _ = write!(table, " {heading} |");
        }
        let _ = write!(table, "\n| --- |{}", " ---: |".repeat(self.columns.len()));
        for peer in self.peers() {
            let _ = write!(table, "\n| {} |", peer.name());
            for (_, figure, digits) in self.columns {
                let _ = write!(table, " {} |", shown(self.median(peer, *figure), *digits));
            }
        }
        table + "\n"
    }

    /// All figures of all rounds by peer, and the goals.
    pub(crate) fn json(&self, goals: &[Goal]) -> serde_json::Result<String> {
        let of_visit = |figures: &F| self.columns.iter().map(|(_, figure, _)| figure(figures)).collect::<Value>();
        let of_peer = |(peer, rounds): (&P, &Vec<F>)| (peer.name().to_owned(), rounds.iter().map(of_visit).collect());
        let rounds: Map<String, Value> = self.rounds.iter().map(of_peer).collect();
        let columns: Vec<_> = self.columns.iter().map(|(heading, ..)| heading).collect();
        let goals: Vec<_> = goals.iter().map(Goal::json).collect();
        serde_json::to_string_pretty(
            &json!({ "commit": commit(), "columns": columns, "rounds": rounds, "goals": goals }),
        )
    }
}

/// A dash for what was not measured.
fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}
