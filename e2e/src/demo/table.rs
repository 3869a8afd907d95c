//! The table at the end: faults and what callers saw of them.

use std::time::Duration;

use super::screen::Screen;
use crate::load::Impact;

/// One fault.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was done.
    pub fault: String,
    /// What it did to the load.
    pub impact: Impact,
    /// From the repair until the load was home again.
    pub time_to_return: Option<Duration>,
}

/// Prints the table.
pub fn print(screen: &mut Screen, rows: &[Row]) {
    let header = format!(
        "{:<44} {:>9} {:>7} {:>12} {:>13} {:>15}",
        "fault", "requests", "failed", "interrupted", "time to move", "time to return"
    );
    screen.row(&header, true);
    for Row { fault, impact, time_to_return } in rows {
        let returned = time_to_return.map_or_else(|| "-".to_owned(), milliseconds);
        let row = format!(
            "{fault:<44} {:>9} {:>7} {:>12} {:>13} {returned:>15}",
            impact.requests,
            impact.failed.len(),
            impact.interrupted,
            milliseconds(impact.time_to_move),
        );
        screen.row(&row, false);
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
