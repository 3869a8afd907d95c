use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use spiffe_identity::{Action, Generation, Pace, Phase, Rotation, Waiting};

const HINT: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(3600);
const SKEW: Duration = Duration::from_secs(30);
const ABSENCE: Duration = Duration::from_secs(120);
const STALL: Duration = Duration::from_secs(45);
const PACE: Pace = Pace { refresh_hint: HINT, longest_svid: LIFE, skew: SKEW, absence: ABSENCE, stall: STALL };

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn waiting(until: Option<SystemTime>, watchers: &[&str], stalled: bool) -> Action {
    let watchers = watchers.iter().map(|name| (*name).to_owned()).collect();
    Action::Wait(Waiting { until, watchers, stalled })
}

/// East and west watch and have acknowledged epoch 4; the new key was published with epoch 5 at 0 s.
fn spreading() -> Rotation {
    let mut rotation = Rotation::new(PACE);
    for watcher in ["east", "west"] {
        rotation.connected(watcher);
        rotation.acknowledged(watcher, 4);
    }
    assert_eq!(rotation.next(at(0)), Action::Publish);
    rotation.published(5, at(0));
    rotation
}

fn draining() -> Rotation {
    let mut rotation = spreading();
    rotation.acknowledged("east", 5);
    rotation.acknowledged("west", 5);
    assert_eq!(rotation.next(at(180)), Action::Activate);
    rotation.activated(at(200));
    rotation
}

#[test]
fn a_rotation_goes_from_publishing_to_done() {
    let mut rotation = draining();
    let end = 200 + (LIFE + SKEW).as_secs();
    assert_eq!(rotation.signer(), Generation::New);
    assert_eq!(rotation.next(at(end - 1)), waiting(Some(at(end)), &[], false));
    assert_eq!(rotation.next(at(end)), Action::Retire);
    rotation.retired(6, at(end + 5));
    assert_eq!(rotation.next(at(end + 5)), waiting(None, &["east", "west"], false));
    rotation.acknowledged("east", 6);
    rotation.acknowledged("west", 7);
    assert_eq!(rotation.next(at(end + 6)), Action::Nothing);
    assert_eq!(rotation.phase(), Phase::Done);
}

#[test]
fn a_history_that_begins_anew_is_acknowledged_anew() {
    for (mut rotation, until, after) in [(spreading(), at(180), 180), {
        let mut settling = draining();
        let end = 200 + (LIFE + SKEW).as_secs();
        assert_eq!(settling.next(at(end)), Action::Retire);
        settling.retired(6, at(end));
        (settling, at(end), end)
    }] {
        // The same or a higher epoch is no new history.
        assert!(!rotation.republished(6));
        rotation.acknowledged("east", 99);
        assert!(rotation.republished(2));
        let Action::Wait(waiting) = rotation.next(at(after)) else { panic!("it went on") };
        assert_eq!(waiting.watchers, ["east", "west"], "what was acknowledged before counts no more");
        rotation.acknowledged("east", 2);
        rotation.acknowledged("west", 3);
        assert!(!matches!(rotation.next(until), Action::Wait(_)));
    }
    assert!(!draining().republished(0), "nothing is waited for then");
}

#[test]
fn a_new_key_signs_after_three_hints_and_all_acknowledgements() {
    let mut rotation = spreading();
    assert_eq!(rotation.next(at(0)), waiting(Some(at(180)), &["east", "west"], false));
    rotation.acknowledged("east", 5);
    rotation.acknowledged("west", 5);
    assert_eq!(rotation.next(at(179)), waiting(Some(at(180)), &[], false), "those who poll need three hints");
    assert_eq!(rotation.signer(), Generation::Old);
    assert_eq!(rotation.next(at(180)), Action::Activate);
}

#[test]
fn a_silent_watcher_stalls_a_rotation_and_is_named() {
    let mut rotation = spreading();
    rotation.acknowledged("east", 5);
    assert_eq!(rotation.next(at(44)), waiting(Some(at(180)), &["west"], false));
    assert_eq!(rotation.next(at(45)), waiting(Some(at(180)), &["west"], true));
    let much_later = rotation.next(at(1_000_000));
    assert_eq!(much_later, waiting(None, &["west"], true), "a connected one is waited for however long it takes");
    let Action::Wait(waiting) = much_later else { panic!() };
    assert_eq!(waiting.to_string(), "stalled, waiting for west");
    rotation.acknowledged("west", 5);
    assert_eq!(rotation.next(at(1_000_001)), Action::Activate);
}

#[test]
fn a_watcher_that_went_away_is_waited_for_a_while() {
    let mut rotation = spreading();
    rotation.acknowledged("east", 5);
    rotation.disconnected("west", at(100));
    rotation.disconnected("west", at(150));
    assert_eq!(rotation.next(at(219)), waiting(None, &["west"], true));
    assert_eq!(rotation.clone().next(at(220)), Action::Activate);
    rotation.connected("west");
    assert_eq!(rotation.next(at(230)), waiting(None, &["west"], true), "it came back without the new key");
    rotation.gone("west");
    assert_eq!(rotation.next(at(230)), Action::Activate, "its cluster was evicted");
}

#[test]
fn a_watcher_that_comes_back_says_anew_what_it_has() {
    let mut rotation = spreading();
    rotation.acknowledged("east", 5);
    rotation.acknowledged("west", 5);
    rotation.connected("west");
    assert_eq!(rotation.next(at(200)), waiting(None, &["west"], true));
    rotation.connected("north");
    rotation.acknowledged("west", 5);
    assert_eq!(rotation.next(at(200)), waiting(None, &["north"], true), "newcomers count");
}

#[test]
fn an_emergency_waits_for_nobody() {
    let mut rotation = spreading();
    assert!(matches!(rotation.next(at(1)), Action::Wait(_)));
    rotation.hurry();
    assert_eq!(rotation.next(at(1)), Action::Activate);
    rotation.activated(at(2));
    assert_eq!(rotation.next(at(2)), Action::Retire);
    rotation.retired(6, at(3));
    assert_eq!(rotation.next(at(3)), Action::Nothing);
    assert!(rotation.is_emergency());
}

#[test]
fn a_clock_set_back_makes_waits_longer() {
    let mut rotation = draining();
    assert!(matches!(rotation.next(at(0)), Action::Wait(_)));
    assert!(matches!(rotation.next(SystemTime::UNIX_EPOCH), Action::Wait(_)));
    assert_eq!(rotation.next(at(200 + 3630)), Action::Retire);
}

#[test]
fn reports_out_of_turn_change_nothing() {
    let mut rotation = Rotation::new(PACE);
    rotation.activated(at(0));
    rotation.retired(1, at(0));
    assert_eq!(rotation.phase(), Phase::Publish);
    let mut rotation = draining();
    let before = rotation.phase();
    rotation.published(9, at(300));
    rotation.retired(9, at(300));
    rotation.activated(at(300));
    assert_eq!(rotation.phase(), before, "a repeated report does not begin the wait again");
}

#[test]
fn after_a_crash_nobody_is_taken_for_absent_because_the_service_was() {
    let mut rotation = spreading();
    rotation.acknowledged("east", 5);
    let text = serde_json::to_string(&rotation).unwrap();
    let mut again: Rotation = serde_json::from_str(&text).unwrap();
    assert_eq!(again, rotation);
    again.resume(at(10_000));
    assert_eq!(again.next(at(10_000)), waiting(None, &["west"], true));
    assert_eq!(again.next(at(10_120)), Action::Activate, "west had its time to come back");
}

#[test]
fn endless_waits_are_no_overflow() {
    let pace = Pace { refresh_hint: Duration::MAX, longest_svid: Duration::MAX, ..PACE };
    let mut rotation = Rotation::new(pace);
    rotation.published(1, at(0));
    assert_eq!(rotation.next(at(1_000)), waiting(None, &[], false));
}

const WATCHERS: [&str; 3] = ["east", "north", "west"];

/// What each watcher trusts, and whose signature its own certificate carries until when.
#[derive(Clone, Copy)]
struct View {
    trusts: (bool, bool),
    certificate: (Generation, SystemTime),
    away_since: Option<SystemTime>,
}

struct World {
    now: SystemTime,
    epoch: u64,
    published: (bool, bool),
    signer: Generation,
    views: [View; 3],
    rotation: Rotation,
    stored: String,
}

#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    Deliver(usize),
    Renew(usize),
    Leave(usize),
    Return(usize),
    /// The owner dies after doing what was asked and before it could store the report.
    Crash,
}

impl World {
    fn new() -> Self {
        let view = View { trusts: (true, false), certificate: (Generation::Old, at(0) + LIFE), away_since: None };
        let mut rotation = Rotation::new(PACE);
        WATCHERS.iter().for_each(|watcher| rotation.connected(watcher));
        let stored = serde_json::to_string(&rotation).unwrap();
        let (published, signer) = ((true, false), Generation::Old);
        Self { now: at(0), epoch: 1, published, signer, views: [view; 3], rotation, stored }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Pass(seconds) => self.now += Duration::from_secs(seconds),
            Event::Deliver(index) if self.views[index].away_since.is_none() => {
                self.views[index].trusts = self.published;
                self.rotation.acknowledged(WATCHERS[index], self.epoch);
            }
            Event::Renew(index) => self.views[index].certificate = (self.signer, self.now + LIFE),
            Event::Leave(index) => {
                self.views[index].away_since.get_or_insert(self.now);
                self.rotation.disconnected(WATCHERS[index], self.now);
            }
            Event::Return(index) => {
                self.views[index].away_since = None;
                self.rotation.connected(WATCHERS[index]);
                self.happen(&Event::Deliver(index));
            }
            Event::Deliver(_) | Event::Crash => {}
        }
        self.act(matches!(event, Event::Crash));
    }

    fn act(&mut self, crashes: bool) {
        loop {
            let action = self.rotation.next(self.now);
            match &action {
                Action::Publish => (self.published, self.epoch) = ((true, true), self.epoch + 1),
                Action::Activate => self.signer = Generation::New,
                Action::Retire => (self.published, self.epoch) = ((false, true), self.epoch + 1),
                Action::Wait(_) | Action::Nothing => {}
            }
            if crashes {
                self.rotation = serde_json::from_str(&self.stored).unwrap();
                self.rotation.resume(self.now);
                // Whoever is there connects again, and knows what it knew: the epoch is not older than what it has.
                for (index, watcher) in WATCHERS.iter().enumerate() {
                    if self.views[index].away_since.is_none() {
                        self.rotation.connected(watcher);
                    }
                }
                return;
            }
            match action {
                Action::Publish => self.rotation.published(self.epoch, self.now),
                Action::Activate => self.rotation.activated(self.now),
                Action::Retire => self.rotation.retired(self.epoch, self.now),
                Action::Wait(_) | Action::Nothing => break,
            }
            self.stored = serde_json::to_string(&self.rotation).unwrap();
        }
        self.stored = serde_json::to_string(&self.rotation).unwrap();
    }

    /// Whether everybody who counts as there believes every certificate that has not run out.
    fn all_handshakes_succeed(&self) -> bool {
        let there = |view: &&View| {
            view.away_since.is_none_or(|since| self.now.duration_since(since).unwrap_or_default() < ABSENCE)
        };
        self.views.iter().filter(there).all(|verifier| {
            let alive = self.views.iter().map(|view| view.certificate).filter(|(_, end)| self.now <= *end + SKEW);
            alive.into_iter().all(|(signer, _)| match signer {
                Generation::Old => verifier.trusts.0,
                Generation::New => verifier.trusts.1,
            })
        })
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1..900u64).prop_map(Event::Pass),
        1 => (1..8000u64).prop_map(Event::Pass),
        6 => (0..3usize).prop_map(Event::Deliver),
        3 => (0..3usize).prop_map(Event::Renew),
        1 => (0..3usize).prop_map(Event::Leave),
        2 => (0..3usize).prop_map(Event::Return),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn no_handshake_fails_at_any_step(events in proptest::collection::vec(event(), 1..80)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            prop_assert!(world.all_handshakes_succeed(), "after {event:?} in {:?}", world.rotation);
        }
    }

    #[test]
    fn a_rotation_ends_once_everybody_acknowledges(events in proptest::collection::vec(event(), 0..40)) {
        let mut world = World::new();
        events.iter().for_each(|event| world.happen(event));
        for _ in 0..4 {
            for index in 0..3 {
                world.happen(&Event::Return(index));
            }
            world.happen(&Event::Pass((LIFE + SKEW).as_secs()));
        }
        prop_assert_eq!(world.rotation.phase(), Phase::Done);
        prop_assert_eq!((world.published, world.signer), ((false, true), Generation::New));
    }
}
