//! Percentiles, the table, the goals.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::rows::{Injection, Row};
use crate::bench::{Goal, commit};

/// What all injections have shown. The stages write to it side by side.
#[derive(Default)]
pub(super) struct Report(Mutex<BTreeMap<Row, Vec<Injection>>>);

/// The times of a row, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, percent: usize) -> f64 {
        let place = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(place).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

impl Report {
    pub(super) fn add(&self, row: Row, injection: Injection) {
        self.lock().entry(row).or_default().push(injection);
    }

    /// One line of a row, when it is complete.
    pub(super) fn line(&self, row: Row) -> String {
        let rows = self.lock();
        let injections = rows.get(&row).map(Vec::as_slice).unwrap_or_default();
        let (times, failed) = (times(injections), failures(injections));
        let mut line = format!(
            "{:22} {:>3} times: p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms; {failed} of {} requests failed",
            row.name(),
            injections.len(),
            times.at(50),
            times.at(99),
            times.at(100),
            injections.iter().map(|injection| injection.requests).sum::<usize>(),
        );
        if let Some(first) = injections.iter().find_map(|injection| injection.failed.first()) {
            let _ = write!(line, ", the first: {first}");
        }
        line
    }

    /// Two for each row that was played: the longest time where there is a limit, and that nothing failed.
    pub(super) fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (row, injections) in self.lock().iter() {
            if let Some(limit) = row.limit() {
                let name = format!("{}_max_ms", row.name());
                goals.push(Goal::new(name, Some(times(injections).at(100)), limit.as_secs_f64() * 1e3));
            }
            #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
            let failed = failures(injections) as f64;
            goals.push(Goal::new(format!("{}_failed", row.name()), Some(failed), 0.0));
        }
        goals
    }

    /// In Markdown.
    pub(super) fn table(&self) -> String {
        let mut table = String::from(
            "| fault | times | measured | p50 ms | p99 ms | max ms | limit | requests | failed | interrupted |\n\
             | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        );
        for (row, injections) in self.lock().iter() {
            let times = times(injections);
            let limit = row.limit().map_or_else(|| "–".to_owned(), |limit| limit.as_millis().to_string());
            let _ = writeln!(
                table,
                "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {limit} | {} | {} | {} |",
                row.title(),
                injections.len(),
                row.what(),
                times.at(50),
                times.at(99),
                times.at(100),
                injections.iter().map(|injection| injection.requests).sum::<usize>(),
                failures(injections),
                injections.iter().map(|injection| injection.interrupted).sum::<usize>(),
            );
        }
        table
    }

    /// Every injection, and the goals.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        let goals: Vec<_> = self.goals().iter().map(Goal::json).collect();
        let rows: serde_json::Map<_, _> =
            self.lock().iter().map(|(row, injections)| (row.name().to_owned(), as_json(injections))).collect();
        serde_json::to_string_pretty(&serde_json::json!({ "commit": commit(), "rows": rows, "goals": goals }))
    }

    /// Held for a few lines, never across an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Row, Vec<Injection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn times(injections: &[Injection]) -> Times {
    let mut times: Vec<_> = injections.iter().map(|injection| injection.time).collect();
    times.sort_unstable();
    Times(times)
}

fn failures(injections: &[Injection]) -> usize {
    injections.iter().map(|injection| injection.failed.len()).sum()
}

fn as_json(injections: &[Injection]) -> serde_json::Value {
    let one = |injection: &Injection| {
        serde_json::json!({
            "ms": injection.time.as_secs_f64() * 1e3,
            "requests": injection.requests,
            "failed": injection.failed,
            "interrupted": injection.interrupted,
        })
    };
    injections.iter().map(one).collect()
}
