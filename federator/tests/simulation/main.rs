//! The federation in a deterministic simulation: the service's own pure parts and the control-plane's, with clusters,
//! replicas, a store and a network whose delays, losses, partitions, crashes, skewed clocks, restores, quarantines and
//! evictions are drawn from a seed.
//!
//! `SEED=7 cargo test -p federator --test simulation one_seed -- --nocapture` replays one world exactly, and `TRACE=1` tells
//! what goes wrong in it; `SEEDS=100000` runs as many, from `FIRST` on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod away;
mod checks;
mod cluster;
mod keys;
mod receiver;
mod store;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use checks::Check;
use world::{Mutation, run};

/// Worlds that are always run, as far as the time allows.
const SEEDS: u64 = 2_000;
/// The time for them.
const TIME: Duration = Duration::from_secs(60);
/// Within so many worlds a broken rule must show.
const MUTANT_SEEDS: u64 = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn every_world_keeps_the_invariants() {
    let (first, seeds) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let (started, limit) = (Instant::now(), number("SEEDS").map_or(TIME, |_| Duration::MAX));
    let (next, done, steps) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let violations = Mutex::new(Vec::new());
    let play = || {
        while started.elapsed() < limit {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return;
            }
            match run(seed, Mutation::None) {
                Ok(taken) => {
                    steps.fetch_add(taken, Ordering::Relaxed);
                }
                Err(violation) => violations.lock().unwrap().push(format!("SEED={seed}: {violation}")),
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(play))));
    let (done, seconds) = (done.into_inner(), started.elapsed().as_secs_f64());
    // Shown with --nocapture.
    let line = format!("{done} seeds, {} events, {:.0} seeds a second", steps.into_inner(), done as f64 / seconds);
    std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes()).unwrap();
    let violations = violations.into_inner().unwrap();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert!(done >= seeds.min(50), "too slow to say anything: {line}");
}

#[test]
fn one_seed() {
    let seed = number("SEED").unwrap_or(0);
    let steps =
        [(); 2].map(|()| run(seed, Mutation::None).unwrap_or_else(|violation| panic!("SEED={seed}: {violation}")));
    assert_eq!(steps[0], steps[1], "the same seed is the same world");
}

/// The rule is broken, and the check that guards it says so in one of the worlds, which is clean otherwise.
fn noticed(mutation: Mutation, check: Check) {
    let clean = if mutation.never_asks_again() { Mutation::NeverAskAgain } else { Mutation::None };
    let clean = if clean == mutation { Mutation::None } else { clean };
    let shows = |seed| run(seed, mutation).is_err_and(|violation| violation.check == check) && run(seed, clean).is_ok();
    let found = (0..MUTANT_SEEDS).any(shows);
    assert!(found, "{mutation:?} was not noticed by {check:?} in {MUTANT_SEEDS} worlds");
}

#[test]
fn a_session_that_was_replaced_and_still_writes_is_noticed() {
    noticed(Mutation::IgnoreEpoch, Check::Fenced);
}

#[test]
fn a_write_for_another_cluster_is_noticed() {
    noticed(Mutation::TrustAnySigner, Check::NoCrossClusterWrite);
}

#[test]
fn resuming_in_another_history_is_noticed() {
    noticed(Mutation::ResumeAnywhere, Check::Convergence);
}

#[test]
fn a_collection_that_leaves_no_mark_is_noticed() {
    noticed(Mutation::CollectWithoutMark, Check::Convergence);
}

#[test]
fn a_collection_that_forgets_what_it_collected_is_noticed() {
    noticed(Mutation::CollectHeads, Check::NoResurrection);
}

#[test]
fn a_receiver_that_believes_old_words_is_noticed() {
    noticed(Mutation::BelieveOldWords, Check::NoResurrection);
}

#[test]
fn a_receiver_that_forgets_everything_before_a_snapshot_is_noticed() {
    noticed(Mutation::DropBeforeASnapshot, Check::NoLostExport);
}

#[test]
fn answers_that_pile_up_are_noticed() {
    noticed(Mutation::ListenToTheDeaf, Check::BoundedMemory);
}

#[test]
fn a_restored_publisher_that_does_not_take_back_what_it_said_is_noticed() {
    noticed(Mutation::ForgetForGood, Check::Convergence);
}

#[test]
fn a_receiver_that_does_not_act_on_late_heads_is_noticed() {
    noticed(Mutation::SettleWithSnapshotsOnly, Check::Convergence);
}

#[test]
fn a_receiver_that_never_asks_for_a_snapshot_is_noticed() {
    noticed(Mutation::NeverAskAgain, Check::Convergence);
}

#[test]
fn a_receiver_that_takes_a_loss_for_a_withdrawal_is_noticed() {
    noticed(Mutation::DropTheLost, Check::NoLostExport);
}

#[test]
fn a_lease_that_never_runs_out_is_noticed() {
    noticed(Mutation::LeaseForever, Check::Suspicion);
}

#[test]
fn a_lease_that_is_not_renewed_for_its_sessions_is_noticed() {
    noticed(Mutation::ForgetTheLease, Check::Suspicion);
}

#[test]
fn giving_up_another_sessions_key_is_noticed() {
    noticed(Mutation::GiveUpBlindly, Check::Suspicion);
}

#[test]
fn a_quarantine_that_spares_open_sessions_is_noticed() {
    noticed(Mutation::LetTheQuarantinedGoOn, Check::CutOff);
}

#[test]
fn an_eviction_that_deletes_nothing_is_noticed() {
    noticed(Mutation::KeepTheEvicted, Check::Evicted);
}
