//! When a change of capacity is worth telling the federation, so that its cost does not follow endpoint churn.

use std::time::{Duration, Instant};

use crate::export::ZoneCapacity;

/// At most one report in this time, unless a zone goes to or comes from zero ready endpoints.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A change of at least one part in this many (10 %) is a step.
const STEP: u32 = 10;

/// Damps one service's capacity: reports steps of 10 % at most once a second, zero crossings at once, and in the end
/// always what is true to within a step.
#[derive(Debug, Default)]
pub struct CapacityReporter {
    reported: Option<(Instant, Vec<ZoneCapacity>)>,
    pending: Option<Vec<ZoneCapacity>>,
}

impl CapacityReporter {
    /// A reporter that has told nothing yet: the first observation is reported.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the zones as they are now (sorted by locality); returns them when they are to be told now.
    pub fn observe(&mut self, now: Instant, zones: Vec<ZoneCapacity>) -> Option<Vec<ZoneCapacity>> {
        let Some((_, told)) = &self.reported else {
            return Some(self.report(now, zones));
        };
        if crosses_zero(told, &zones) {
            return Some(self.report(now, zones));
        }
        self.pending = is_step(told, &zones).then_some(zones);
        self.poll(now)
    }

    /// When [`poll`](Self::poll) has something to tell, if nothing is observed before.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let (told_at, _) = self.reported.as_ref()?;
        self.pending.as_ref().map(|_| *told_at + REPORT_INTERVAL)
    }

    /// The step that was held back, once its time has come.
    pub fn poll(&mut self, now: Instant) -> Option<Vec<ZoneCapacity>> {
        if self.next_due()? > now {
            return None;
        }
        let zones = self.pending.take()?;
        Some(self.report(now, zones))
    }

    fn report(&mut self, now: Instant, zones: Vec<ZoneCapacity>) -> Vec<ZoneCapacity> {
        self.pending = None;
        self.reported = Some((now, zones.clone()));
        zones
    }
}

fn pairs<'a>(
    told: &'a [ZoneCapacity],
    zones: &'a [ZoneCapacity],
) -> impl Iterator<Item = (Option<&'a ZoneCapacity>, Option<&'a ZoneCapacity>)> {
    let find =
        |list: &'a [ZoneCapacity], zone: &ZoneCapacity| list.iter().find(|other| other.locality == zone.locality);
    let kept = told.iter().map(move |zone| (Some(zone), find(zones, zone)));
    let new = zones.iter().filter(move |zone| find(told, zone).is_none()).map(|zone| (None, Some(zone)));
    kept.chain(new)
}

fn crosses_zero(told: &[ZoneCapacity], zones: &[ZoneCapacity]) -> bool {
    let ready = |zone: Option<&ZoneCapacity>| zone.map_or(0, |zone| zone.ready);
    pairs(told, zones).any(|(before, after)| (ready(before) == 0) != (ready(after) == 0))
}

fn is_step(told: &[ZoneCapacity], zones: &[ZoneCapacity]) -> bool {
    let moved = |before: u32, after: u32| before != after && before.abs_diff(after).saturating_mul(STEP) >= before;
    pairs(told, zones).any(|(before, after)| match (before, after) {
        (Some(before), Some(after)) => moved(before.ready, after.ready) || moved(before.total, after.total),
        // A zone without ready endpoints appeared or went.
        (Some(zone), None) | (None, Some(zone)) => zone.total > 0,
        (None, None) => false,
    })
}
