//! From one root to the next.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_tls::PeerError;
use rustls_pki_types::CertificateDer;
use spiffe_identity::{Pace, Phase, Waiting};
use svid_issuer::{Authority, RootError, RootRotation, RootStep, RotateError, Svid};
use tempfile::TempDir;

use crate::{
    DAY, authority, cart, east, issue,
    issuing::{brought, open},
    judged, now,
};

const SECOND: Duration = Duration::from_secs(1);

fn reopened(directory: &Path) -> Authority {
    Authority::open(directory, &east()).unwrap()
}

fn root_of(svid: &Svid, roots: &[CertificateDer<'static>], time: SystemTime) -> Vec<usize> {
    let signs = |index: &usize| judged(vec![roots[*index].clone()], svid, time).is_ok();
    (0..roots.len()).filter(signs).collect()
}

#[test]
fn the_next_root_is_published_before_it_signs_and_the_old_one_after() {
    let (directory, authority) = authority();
    let old = authority.root();
    let before = issue(&authority, now());
    authority.prepare_root(now()).unwrap();
    authority.prepare_root(now()).unwrap();
    let both = authority.roots();
    assert_eq!((both.len(), &both[0], authority.root()), (2, &old, old.clone()));
    assert_eq!(root_of(&issue(&authority, now()), &both, now()), [0], "the old one signs");
    authority.activate_root(now()).unwrap();
    authority.activate_root(now()).unwrap();
    let new = authority.root();
    assert_eq!(authority.roots(), [new.clone(), old.clone()]);
    let after = issue(&authority, now());
    assert_eq!(root_of(&after, &both, now()), [1]);
    for svid in [&before, &after] {
        assert_eq!(judged(both.clone(), svid, now()), Ok(()), "who has both believes both");
    }
    assert!(matches!(authority.prepare_root(now()), Err(RootError::NotRetired)));
    assert_eq!(reopened(directory.path()).roots(), [new.clone(), old]);
    authority.retire_root().unwrap();
    authority.retire_root().unwrap();
    assert_eq!(authority.roots(), std::slice::from_ref(&new));
    assert_eq!(judged(authority.roots(), &before, now()), Err(PeerError::UnknownIssuer(cart())));
    assert_eq!(judged(authority.roots(), &after, now()), Ok(()));
    assert_eq!(reopened(directory.path()).roots(), [new]);
    assert!(authority.prepare_root(now()).is_ok(), "and so on");
}

#[test]
fn a_root_is_not_replaced_out_of_turn() {
    let (_directory, own) = authority();
    assert!(matches!(own.activate_root(now()), Err(RootError::NotPrepared)));
    let corporate = brought(|_| {});
    let brought = open(&[&corporate.intermediate, &corporate.root], &corporate.key).unwrap();
    assert!(matches!(brought.prepare_root(now()), Err(RootError::Brought)));
    assert_eq!(brought.roots(), [corporate.root]);
    let refused = RootRotation::begin(Arc::new(brought), PACE);
    assert!(matches!(refused, Err(RotateError::Root(RootError::Brought))), "and nothing is left under way");
}

#[test]
fn the_old_root_s_key_is_gone_once_the_next_one_signs() {
    let (directory, authority) = authority();
    let key = fs::read(directory.path().join("ca.key")).unwrap();
    authority.prepare_root(now()).unwrap();
    authority.activate_root(now()).unwrap();
    assert_ne!(fs::read(directory.path().join("ca.key")).unwrap(), key);
    let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    for path in names {
        assert!(!fs::read(&path).unwrap().windows(key.len()).any(|window| window == key), "{}", path.display());
    }
}

#[test]
fn an_activation_that_was_interrupted_anywhere_is_finished_or_has_not_begun() {
    let (directory, authority) = authority();
    let at = |name: &str| directory.path().join(name);
    let old = authority.root();
    let old_key = fs::read(at("ca.key")).unwrap();
    issue(&authority, now());
    authority.prepare_root(now()).unwrap();
    let new = authority.roots()[1].clone();
    let (old_pem, prepared) = (fs::read(at("ca.crt")).unwrap(), fs::read(at("ca.next.pem")).unwrap());
    // Only the old root's certificate was put aside.
    fs::write(at("ca.old.crt"), &old_pem).unwrap();
    let early = reopened(directory.path());
    assert_eq!((early.root(), early.roots()), (old.clone(), vec![old.clone(), new.clone()]));
    assert_eq!(root_of(&issue(&early, now()), &early.roots(), now()), [0]);
    early.activate_root(now()).unwrap();
    let new_pem = fs::read(at("ca.crt")).unwrap();
    let new_key = fs::read(at("ca.key")).unwrap();
    // The new certificate is in its place, and its key is not; or both are, and the prepared file is still there.
    for key in [&old_key, &new_key] {
        fs::write(at("ca.crt"), &new_pem).unwrap();
        fs::write(at("ca.key"), key).unwrap();
        fs::write(at("ca.next.pem"), &prepared).unwrap();
        let late = reopened(directory.path());
        assert_eq!((late.root(), late.roots()), (new.clone(), vec![new.clone(), old.clone()]));
        assert_eq!(root_of(&issue(&late, now()), &late.roots(), now()), [0]);
        assert!(!at("ca.next.pem").exists());
        assert!(late.activate_root(now()).is_ok(), "a repeated step");
    }
}

const PACE: Pace = Pace {
    refresh_hint: Duration::from_secs(60),
    longest_svid: DAY,
    skew: Duration::from_secs(300),
    absence: Duration::from_secs(120),
    stall: Duration::from_secs(45),
};

/// An authority, its rotation, and a watcher's view of the roots.
struct Rotating {
    directory: TempDir,
    authority: Arc<Authority>,
    rotation: RootRotation,
    published: Vec<CertificateDer<'static>>,
    epoch: u64,
}

impl Rotating {
    fn new() -> Self {
        let (directory, authority) = authority();
        let authority = Arc::new(authority);
        let mut rotation = RootRotation::begin(authority.clone(), PACE).unwrap();
        rotation.update(|rotation| rotation.connected("west")).unwrap();
        let published = authority.roots();
        Self { directory, authority, rotation, published, epoch: 1 }
    }

    /// Asks until there is a wait; what is published reaches the watcher at once.
    fn go_on(&mut self, now: SystemTime) -> Option<Waiting> {
        loop {
            match self.rotation.step(now).unwrap() {
                RootStep::Wait(waiting) => return Some(waiting),
                RootStep::Done => return None,
                RootStep::Publish(roots) => {
                    self.epoch += 1;
                    self.published = roots;
                    self.rotation.published(self.epoch, now).unwrap();
                    let epoch = self.epoch;
                    self.rotation.update(|rotation| rotation.acknowledged("west", epoch)).unwrap();
                }
            }
        }
    }

    fn restart(&mut self, now: SystemTime) {
        self.authority = Arc::new(reopened(self.directory.path()));
        self.rotation = RootRotation::resume(self.authority.clone(), now).unwrap().unwrap();
        let epoch = self.epoch;
        self.rotation
            .update(|rotation| {
                rotation.connected("west");
                rotation.acknowledged("west", epoch);
            })
            .unwrap();
    }
}

#[test]
fn a_rotation_with_a_restart_at_every_wait_costs_no_handshake() {
    let mut world = Rotating::new();
    let first = world.authority.root();
    let mut alive: Vec<Svid> = Vec::new();
    let mut time = now();
    let mut phases = Vec::new();
    while world.go_on(time).is_some() {
        phases.push(world.rotation.phase());
        alive.push(issue(&world.authority, time));
        alive.retain(|svid| svid.not_after + PACE.skew > time);
        for svid in &alive {
            assert_eq!(judged(world.published.clone(), svid, time.min(svid.not_after)), Ok(()), "in {phases:?}");
        }
        world.restart(time);
        time += if phases.len() < 5 { 60 * SECOND } else { 2400 * SECOND };
    }
    assert!(matches!(phases[0], Phase::Spread { .. }) && matches!(phases[phases.len() - 1], Phase::Drain { .. }));
    assert!(time > now() + DAY, "the old root stayed for the longest SVID");
    assert_eq!(world.published, [world.authority.root()]);
    assert_ne!(world.published, [first]);
    assert!(RootRotation::resume(world.authority.clone(), time).unwrap().is_none(), "nothing is under way");
    let mut again = RootRotation::begin(world.authority, PACE).unwrap();
    assert!(matches!(again.step(time).unwrap(), RootStep::Publish(roots) if roots.len() == 2));
}

#[test]
fn a_rotation_says_on_whom_it_waits_and_hurries_when_told() {
    let mut world = Rotating::new();
    world.rotation.update(|rotation| rotation.connected("north")).unwrap();
    let waiting = world.go_on(now()).unwrap();
    assert_eq!((waiting.watchers, waiting.stalled), (vec!["north".to_owned()], false));
    let waiting = world.go_on(now() + 200 * SECOND).unwrap();
    assert_eq!(waiting.to_string(), "stalled, waiting for north");
    assert_eq!(world.authority.roots().len(), 2);
    world.rotation.update(spiffe_identity::Rotation::hurry).unwrap();
    assert_eq!(world.go_on(now() + 201 * SECOND), None);
    assert_eq!(world.published, world.authority.roots());
    assert_eq!(world.published.len(), 1);
}

#[test]
fn a_rotation_is_given_up_before_the_next_root_signs_and_not_after() {
    let mut world = Rotating::new();
    let old = world.authority.root();
    assert!(world.go_on(now()).is_some());
    assert_eq!(world.authority.roots().len(), 2);
    world.rotation.cancel().unwrap();
    assert_eq!(world.authority.roots(), [old]);
    assert_eq!(reopened(world.directory.path()).roots(), world.authority.roots());
    world.rotation = RootRotation::begin(world.authority.clone(), PACE).unwrap();
    world.rotation.update(|rotation| rotation.connected("west")).unwrap();
    assert!(world.go_on(now()).is_some());
    assert!(world.go_on(now() + 180 * SECOND).is_some());
    assert!(matches!(world.rotation.phase(), Phase::Drain { .. }));
    assert!(matches!(world.rotation.cancel(), Err(RotateError::TooLate)));
    let again = RootRotation::resume(world.authority, now()).unwrap().unwrap();
    assert!(matches!(again.phase(), Phase::Drain { .. }), "it goes on");
}

#[test]
fn one_rotation_is_under_way_at_a_time() {
    let world = Rotating::new();
    assert!(matches!(RootRotation::begin(world.authority.clone(), PACE), Err(RotateError::UnderWay)));
    fs::write(world.directory.path().join("ca.rotation.json"), "{}").unwrap();
    assert!(matches!(RootRotation::resume(world.authority, now()), Err(RotateError::State { .. })));
}
