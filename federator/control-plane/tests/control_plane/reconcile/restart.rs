//! What is taken up from the disk, and said again.

use super::*;

#[test]
fn nothing_happens_before_the_own_objects_were_read() {
    let root = MembershipRoot::generate().unwrap();
    let own = Peer::new(&root, "east");
    let now = Now::read();
    let mut world = World::shop();
    let published = world.published.clone();
    let restored = Restored { published: published.clone(), ..Restored::default() };
    let mut again = reconciler(&world.root, &world.own, restored, true, now);
    again.handle(Input::Session(SessionInput::Connected { incarnation: "x".to_owned(), resumed: false }), now);
    let effects = again.flush(now);
    assert!(effects.publish.is_empty() && effects.snapshot.is_none(), "no withdrawal of what is not read yet");
    again.handle(Input::Source(SourceUpdate { synced: true, ..SourceUpdate::default() }), now);
    assert!(
        again
            .flush(now)
            .publish
            .iter()
            .any(|signed| { world.own.verified.verify(signed).unwrap().payload == Payload::Withdrawal })
    );
    drop((own, world.flush()));
}

#[test]
fn a_restart_takes_up_everything_and_signs_nothing_anew() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    let bundle = west.bundle();
    world.trust(&[&west], vec![bundle], None);
    let cursor = SessionCursor { incarnation: "i".to_owned(), revision: 7, ..SessionCursor::default() };
    let records = vec![west.export("shop/cart", |_| {})];
    world.tell(Input::Session(SessionInput::Changes(records, cursor.clone())));
    world.tell(Input::Session(SessionInput::SnapshotComplete(vec!["shop".parse().unwrap()], cursor)));
    let directory = tempfile::tempdir().unwrap();
    let state = control_plane::state::StateDirectory::open(directory.path()).unwrap();
    for (name, bytes) in &world.files {
        state.write(name, bytes).unwrap();
    }
    let restored = Restored::read(&state).unwrap();
    assert_eq!(restored.session_cursor.revision, 7);
    let before = Arc::clone(&world.snapshot);
    world.now = Now { instant: Instant::now(), system: SystemTime::now() + Duration::from_secs(100) };
    world.reconciler = reconciler(&world.root, &world.own, restored, true, world.now);
    world.published.clear();
    world.apply(SHOP);
    assert!(world.snapshot.synced);
    let id = "shop/cart".parse().unwrap();
    assert_eq!(world.snapshot.services[&id].resource, before.services[&id].resource);
    assert_eq!(world.snapshot.exports[&id].created, before.exports[&id].created);
    let latest = world.published.iter().map(|signed| world.own.verified.verify(signed).unwrap().issued).max();
    assert!(
        latest.unwrap() < SystemTime::now() + Duration::from_secs(50),
        "what is said again is what was signed before"
    );
}

#[test]
fn records_that_are_not_all_there_are_asked_for_again() {
    let mut world = World::shop();
    let mut west = Peer::new(&world.root, "west");
    world.trust(&[&west], Vec::new(), None);
    let cursor = SessionCursor { incarnation: "i".to_owned(), revision: 7, ..SessionCursor::default() };
    let records = vec![west.export("shop/cart", |_| {}), west.export("shop/ads", |_| {})];
    world.tell(Input::Session(SessionInput::Changes(records, cursor.clone())));
    world.tell(Input::Session(SessionInput::SnapshotComplete(vec!["shop".parse().unwrap()], cursor)));
    // Written without news of the session: the cursor goes with it all the same.
    world.trust(&[&west], Vec::new(), None);
    let directory = tempfile::tempdir().unwrap();
    let state = control_plane::state::StateDirectory::open(directory.path()).unwrap();
    let write = || world.files.iter().for_each(|(name, bytes)| state.write(name, bytes).unwrap());
    let read = || Restored::read(&state).unwrap();
    write();
    assert!(read().peers_synced && read().session_cursor.revision == 7 && !read().published.is_empty());
    let peers = &world.files["peers.bin"];
    let damages: [Option<&[u8]>; 4] = [None, Some(&[]), Some(&peers[..peers.len() / 2]), Some(&peers[..40])];
    for damage in damages {
        for name in ["peers.bin", "peers.json", "published.bin"] {
            write();
            match damage {
                Some(bytes) => state.write(name, bytes).unwrap(),
                None => std::fs::remove_file(state.path(name)).unwrap(),
            }
            let restored = read();
            if name == "published.bin" {
                assert!(restored.published.is_empty() && restored.peers_synced);
                continue;
            }
            assert!(!restored.peers_synced && restored.session_cursor == SessionCursor::default(), "{name}");
            let mut again = reconciler(&world.root, &world.own, restored, true, world.now);
            again.handle(Input::Source(SourceUpdate { synced: true, ..SourceUpdate::default() }), world.now);
            assert!(!again.flush(world.now).snapshot.unwrap().synced);
        }
    }
}

#[test]
fn what_is_refused_for_something_newer_is_signed_again_once_a_second() {
    let mut world = World::shop();
    let refuse = |world: &mut World, reason: Reason| {
        let said = world.said("exports/shop/cart").unwrap();
        let refusal = Some(Refusal { reason: reason.into(), ..Refusal::default() });
        let result = PublishResult { key: said.key.to_string(), sequence: said.sequence, revision: 0, refusal };
        let effects = world.tell(Input::Session(SessionInput::Published(vec![result])));
        (said, effects.publish)
    };
    for reason in [Reason::Stale, Reason::Equivocation] {
        world.now.instant += Duration::from_secs(2);
        let (before, published) = refuse(&mut world, reason);
        let keys: Vec<_> = published.iter().map(|it| world.own.verified.verify(it).unwrap().key.to_string()).collect();
        assert_eq!(keys, ["exports/shop/cart", "heads"]);
        let after = world.said("exports/shop/cart").unwrap();
        assert!(after.sequence > before.sequence && after.payload == before.payload);
        assert!(world.flush().publish.is_empty(), "once for each refusal");
    }
    let (_, published) = refuse(&mut world, Reason::Stale);
    assert!(published.is_empty() && world.reconciler.next_due().is_some(), "once a second");
    world.now.instant += Duration::from_secs(1);
    assert_eq!(world.flush().publish.len(), 2);
    world.now.instant += Duration::from_secs(2);
    assert!(refuse(&mut world, Reason::NotDelegated).1.is_empty(), "another signature changes nothing there");
}
