//! The phases of replacing a signing key without a failed handshake, as a state machine that does nothing itself.

mod wait;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

pub use self::wait::{Waiting, Watcher};
use crate::DEFAULT_REFRESH_HINT;

/// Refresh hints that must pass between publishing a key and its first use (SPIFFE Federation, section 5.1: three to five).
pub const HINTS_BEFORE_USE: u32 = 3;

/// A rotation of a root, of an intermediate's root, or of any key that others must know before it is used.
///
/// ```text
///  Publish ─published(epoch)─► Spread ─► Activate ─activated()─► Drain ─► Retire ─retired(epoch)─► Settle ─► Done
///  put the new key             every     sign with               longest  drop the                 every
///  beside the old              watcher   the new                 SVID     old key                  watcher
///                              + 3 hints                         + skew
/// ```
///
/// The owner asks [`next`](Self::next) what to do, does it, and reports back; each action may be repeated without harm. The
/// state is serialisable: an owner that writes it after each report, before it goes on, resumes after a crash at any point.
///
/// - Nothing is signed by a key that a live watcher may not know, and no key is dropped while a certificate below it lives.
/// - A watcher that does not acknowledge stops the rotation; [`Waiting`] names it. Only [`hurry`](Self::hurry) goes on without.
/// - A clock that is set back makes the waits longer, never shorter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rotation {
    pace: Pace,
    phase: Phase,
    emergency: bool,
    /// Who has watched since the rotation began, by name.
    watchers: BTreeMap<String, Watcher>,
}

/// How long each wait lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pace {
    /// How often those poll who do not watch.
    pub refresh_hint: Duration,
    /// The longest life of a certificate below the old key.
    pub longest_svid: Duration,
    /// How far clocks may be apart.
    pub skew: Duration,
    /// How long a watcher that went away is still waited for: it may come back with what it knew.
    pub absence: Duration,
    /// Without all acknowledgements after this time the rotation counts as stalled. It waits on either way.
    pub stall: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            refresh_hint: DEFAULT_REFRESH_HINT,
            longest_svid: Duration::from_secs(24 * 3600),
            skew: Duration::from_secs(300),
            absence: HINTS_BEFORE_USE * DEFAULT_REFRESH_HINT,
            stall: Duration::from_secs(60),
        }
    }
}

/// How far a rotation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", rename_all_fields = "camelCase", tag = "phase")]
pub enum Phase {
    /// The new key is to be published beside the old one, which signs.
    Publish,
    /// Both are published, the old one signs: others learn the new one.
    Spread {
        /// The epoch that brought the new key.
        epoch: u64,
        /// When it was published.
        since: SystemTime,
    },
    /// The new key is to sign from now on; both stay published.
    Activate,
    /// The new key signs: what the old one signed runs out.
    Drain {
        /// When the new key began to sign.
        since: SystemTime,
    },
    /// The old key is to be dropped from what is published.
    Retire,
    /// The old key is dropped: others unlearn it.
    Settle {
        /// The epoch without the old key.
        epoch: u64,
        /// When it was published.
        since: SystemTime,
    },
    /// Nobody who watches trusts the old key.
    Done,
}

/// What a rotation asks of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publish the new key beside the old one, then report [`published`](Rotation::published).
    Publish,
    /// Sign with the new key, then report [`activated`](Rotation::activated).
    Activate,
    /// Publish the new key alone and destroy the old one, then report [`retired`](Rotation::retired).
    Retire,
    /// Nothing yet; ask again when something is acknowledged, or at `until`.
    Wait(Waiting),
    /// It is over.
    Nothing,
}

/// Which key: the one before the rotation or the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// The one before.
    Old,
    /// The one after.
    New,
}

impl Rotation {
    /// A rotation about to begin.
    pub fn new(pace: Pace) -> Self {
        Self { pace, phase: Phase::Publish, emergency: false, watchers: BTreeMap::new() }
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the waits are skipped.
    pub fn is_emergency(&self) -> bool {
        self.emergency
    }

    /// Who signs in this phase.
    pub fn signer(&self) -> Generation {
        match self.phase {
            // Until `activated` is reported nobody knows: the owner may have crashed before or after. Both are published.
            Phase::Publish | Phase::Spread { .. } | Phase::Activate => Generation::Old,
            _ => Generation::New,
        }
    }

    /// Skips all waits from now on: the old key is in wrong hands, and failed handshakes are the smaller evil.
    pub fn hurry(&mut self) {
        self.emergency = true;
    }

    /// Both keys are published with this epoch.
    pub fn published(&mut self, epoch: u64, now: SystemTime) {
        if self.phase == Phase::Publish {
            self.phase = Phase::Spread { epoch, since: now };
        }
    }

    /// What was published has this epoch now. A lower one means that the history of epochs began anew, from a backup:
    /// whoever watches acknowledges in the new one only, and what was acknowledged before counts no more. Says whether
    /// that is so; the owner passes on anew who watches then.
    pub fn republished(&mut self, now_at: u64) -> bool {
        let (Phase::Spread { epoch, .. } | Phase::Settle { epoch, .. }) = &mut self.phase else { return false };
        if now_at >= *epoch {
            return false;
        }
        *epoch = now_at;
        for watcher in self.watchers.values_mut() {
            watcher.acknowledged = None;
        }
        true
    }

    /// The new key signs.
    pub fn activated(&mut self, now: SystemTime) {
        if self.phase == Phase::Activate {
            self.phase = Phase::Drain { since: now };
        }
    }

    /// The new key alone is published, with this epoch.
    pub fn retired(&mut self, epoch: u64, now: SystemTime) {
        if self.phase == Phase::Retire {
            self.phase = Phase::Settle { epoch, since: now };
        }
    }

    /// A watcher is connected. One that comes back says anew what it has applied: it may have lost its disk.
    pub fn connected(&mut self, watcher: &str) {
        self.watchers.insert(watcher.to_owned(), Watcher { acknowledged: None, away_since: None });
    }

    /// A connected watcher has applied everything up to `epoch`.
    pub fn acknowledged(&mut self, watcher: &str, epoch: u64) {
        let watcher = self.watchers.entry(watcher.to_owned());
        watcher.or_insert(Watcher { acknowledged: None, away_since: None }).acknowledged = Some(epoch);
    }

    /// A watcher's connection has ended; it is waited for a while longer, with what it acknowledged.
    pub fn disconnected(&mut self, watcher: &str, now: SystemTime) {
        if let Some(watcher) = self.watchers.get_mut(watcher) {
            watcher.away_since.get_or_insert(now);
        }
    }

    /// A watcher will not come back: its cluster has left or was evicted.
    pub fn gone(&mut self, watcher: &str) {
        self.watchers.remove(watcher);
    }

    /// The owner was away and nobody is connected: each watcher gets the whole time to come back. To be called once, after
    /// the state was read back.
    pub fn resume(&mut self, now: SystemTime) {
        for watcher in self.watchers.values_mut() {
            watcher.away_since = Some(now);
        }
    }

    /// What is to be done now. Moves on from a wait that is over, and from nothing else.
    pub fn next(&mut self, now: SystemTime) -> Action {
        loop {
            let (waiting, following) = match self.phase {
                Phase::Publish => return Action::Publish,
                Phase::Activate => return Action::Activate,
                Phase::Retire => return Action::Retire,
                Phase::Done => return Action::Nothing,
                Phase::Spread { epoch, since } => {
                    let hints = self.pace.refresh_hint.saturating_mul(HINTS_BEFORE_USE);
                    (self.wait_for_all(epoch, since, hints, now), Phase::Activate)
                }
                Phase::Drain { since } => {
                    let life = self.pace.longest_svid.saturating_add(self.pace.skew);
                    (self.wait_until(since, life, now), Phase::Retire)
                }
                Phase::Settle { epoch, since } => (self.wait_for_all(epoch, since, Duration::ZERO, now), Phase::Done),
            };
            match waiting {
                Some(waiting) if !self.emergency => return Action::Wait(waiting),
                _ => self.phase = following,
            }
        }
    }
}
