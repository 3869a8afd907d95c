//! What benches share: comparisons, clocks, goals, medians, tables in files.

pub(crate) mod clock;
pub(crate) mod comparison;

use std::io::Write;
use std::process::ExitCode;
use std::{fmt, path::Path};

use anyhow::Context;

/// One goal and what became of it: at most `limit`.
pub(crate) struct Goal {
    /// What is measured, with its unit.
    pub(crate) name: String,
    /// `None`: it could not be measured.
    pub(crate) value: Option<f64>,
    /// The most that is good.
    pub(crate) limit: f64,
    /// A wish beyond the goals: missing it is no failure.
    pub(crate) stretch: bool,
}

impl Goal {
    pub(crate) fn new(name: impl Into<String>, value: Option<f64>, limit: f64) -> Self {
        Self { name: name.into(), value, limit, stretch: false }
    }

    pub(crate) fn stretch(name: impl Into<String>, value: Option<f64>, limit: f64) -> Self {
        Self { stretch: true, ..Self::new(name, value, limit) }
    }

    pub(crate) fn met(&self) -> bool {
        self.value.is_some_and(|value| value <= self.limit)
    }

    /// Whether a strict run fails by it.
    pub(crate) fn failed(&self) -> bool {
        !self.stretch && !self.met()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let Self { name, value, limit, stretch } = self;
        serde_json::json!({ "name": name, "value": value, "limit": limit, "stretch": stretch, "met": self.met() })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.stretch { "stretch" } else { "goal" };
        let outcome = if self.met() { "met" } else { "missed" };
        match self.value {
            Some(value) => write!(formatter, "{kind}: {} {value:.3} {} {outcome}", self.name, self.limit),
            None => write!(formatter, "{kind}: {} unmeasured {} {outcome}", self.name, self.limit),
        }
    }
}

/// Prints what became of the goals; a strict run fails by one that was missed.
pub(crate) fn conclude(goals: &[Goal], strict: bool) -> std::io::Result<ExitCode> {
    let mut screen = std::io::stdout();
    for goal in goals {
        writeln!(screen, "{goal}")?;
    }
    Ok(if strict && goals.iter().any(Goal::failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The median; `None` of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Puts a table in the place of the one that follows the line `<!-- NAME -->`, up to the next empty line.
pub(crate) fn replace_table(path: &Path, name: &str, table: &str) -> anyhow::Result<()> {
    let marker = format!("<!-- {name} -->\n");
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (before, rest) = text.split_once(&marker).with_context(|| format!("{} has no {marker}", path.display()))?;
    let after = rest.find("\n\n").map_or("", |end| &rest[end..]);
    Ok(std::fs::write(path, format!("{before}{marker}{}{after}", table.trim_end()))?)
}

/// The commit that the working tree is at, for the record.
pub(crate) fn commit() -> String {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if text.is_empty() { "unknown".to_owned() } else { text }
}
