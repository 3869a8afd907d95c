//! A cluster, or the federation, that was set back: what is taken back, acted on late, and asked for again.

use super::*;

fn connected(resumed: bool) -> Input {
    Input::Session(SessionInput::Connected { incarnation: "i".to_owned(), resumed })
}

fn cursor(revision: u64) -> SessionCursor {
    SessionCursor { incarnation: "i".to_owned(), revision, namespaces: ["shop".parse().unwrap()].into() }
}

impl World {
    /// As it was on disk at some time.
    fn restore(&mut self, published: Vec<Signed>) {
        let restored = Restored { published, ..Restored::default() };
        self.reconciler = reconciler(&self.root, &self.own, restored, true, self.now);
        self.published.clear();
    }

    fn told(&mut self, records: Vec<Signed>, revision: u64) -> Effects {
        self.tell(Input::Session(SessionInput::Changes(records, cursor(revision))))
    }

    fn heartbeat(&mut self) -> Effects {
        self.tell(Input::Session(SessionInput::Heartbeat(9)))
    }

    /// A peer with two exports, both held, with the session's first snapshot complete.
    fn with_peer() -> (Self, Peer, Signed) {
        let mut world = Self::shop();
        let mut west = Peer::new(&world.root, "west");
        world.trust(&[&west], Vec::new(), None);
        let (ads, cart) = (west.export("shop/ads", |_| {}), west.export("shop/cart", |_| {}));
        let heads = west.heads();
        world.tell(connected(false));
        world.told(vec![ads, cart.clone(), heads], 1);
        world.tell(Input::Session(SessionInput::SnapshotComplete(vec!["shop".parse().unwrap()], cursor(1))));
        assert_eq!(world.imports(), ["shop/ads", "shop/cart"]);
        (world, west, cart)
    }
}

#[test]
fn a_restored_publisher_withdraws_what_it_had_forgotten_and_keeps_its_newer_words() {
    let mut world = World::shop();
    let old = world.published.clone();
    world.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: ads, namespace: shop}\nspec: {ports: [{name: grpc, port: 7071}]}\n---\n\
         apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: ads, namespace: shop}\n",
    );
    world.apply("apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{name: grpc, port: 7099}]}\n");
    let stored: Vec<_> =
        ["exports/shop/ads", "exports/shop/cart", "heads"].map(|key| world.said(key).unwrap().signed).into();
    let newest = world.said("exports/shop/cart").unwrap().sequence;
    // The machine's clock was set back with its disk.
    world.now.system -= Duration::from_secs(600);
    world.restore(old);
    world.apply(SHOP);
    assert!(world.said("exports/shop/ads").is_none(), "it has forgotten it");
    world.tell(connected(true));
    world.files.clear();
    world.told(stored, 9);
    assert!(world.files.contains_key("published.bin"), "it is written down");
    let ads = world.said("exports/shop/ads").unwrap();
    assert_eq!(ads.payload, Payload::Withdrawal);
    let cart = world.said("exports/shop/cart").unwrap();
    assert!(cart.sequence > newest && ads.sequence > newest, "nothing of it is an older word");
    assert_eq!(world.exported().ports[0].port, 7070, "what it means now");
    let published = world.published.len();
    world.told(vec![ads.signed, cart.signed], 10);
    assert_eq!(world.published.len(), published, "the echo of its own words is no news");
}

#[test]
fn nobody_elses_word_and_no_forgery_is_taken_back() {
    let mut world = World::shop();
    let published = world.published.len();
    let mut impostor = Peer::new(&MembershipRoot::generate().unwrap(), "east");
    let forged = impostor.export("shop/ads", |_| {});
    world.told(vec![forged], 9);
    assert_eq!(world.published.len(), published);
}

#[test]
fn heads_that_come_after_the_records_are_acted_on_at_once() {
    let (mut world, mut west, cart) = World::with_peer();
    west.say(&RecordKey::Export("shop/ads".parse().unwrap()), &Payload::Withdrawal);
    let heads = west.heads();
    world.tell(connected(false));
    world.told(vec![cart], 2);
    world.tell(Input::Session(SessionInput::SnapshotComplete(vec!["shop".parse().unwrap()], cursor(2))));
    assert_eq!(world.imports(), ["shop/ads", "shop/cart"], "absence takes nothing away");
    world.told(vec![heads], 3);
    assert_eq!(world.imports(), ["shop/cart"]);
}

#[test]
fn a_difference_that_lasts_asks_for_a_snapshot_and_again_ever_more_rarely() {
    let (mut world, mut west, cart) = World::with_peer();
    west.say(&RecordKey::Export("shop/ads".parse().unwrap()), &Payload::Withdrawal);
    let heads = west.heads();
    world.tell(connected(true));
    // The withdrawal was collected; the session has gone on as if nothing were missing.
    world.told(vec![heads.clone()], 3);
    assert_eq!(world.imports(), ["shop/ads", "shop/cart"], "a ghost");
    assert!(!world.heartbeat().begin_anew);
    world.now.instant += Duration::from_secs(10);
    assert!(!world.heartbeat().begin_anew, "the network may be slow");
    world.now.instant += Duration::from_secs(10);
    let effects = world.heartbeat();
    assert!(effects.begin_anew && effects.session_applied.is_none());
    assert!(!world.heartbeat().begin_anew, "once");
    assert_eq!(world.told(Vec::new(), 4).session_applied, None, "what was on its way leads nowhere");
    // Saying the same again does not help.
    let mut waits = Vec::new();
    for _ in 0..3 {
        world.tell(connected(true));
        world.told(Vec::new(), 5);
        let from = world.now.instant;
        while !world.heartbeat().begin_anew {
            world.now.instant += Duration::from_secs(1);
        }
        waits.push((world.now.instant - from).as_secs());
    }
    assert_eq!(waits, [30, 60, 120]);
    world.tell(connected(false));
    world.told(vec![cart, heads], 6);
    world.tell(Input::Session(SessionInput::SnapshotComplete(vec!["shop".parse().unwrap()], cursor(6))));
    assert_eq!(world.imports(), ["shop/cart"]);
    world.now.instant += Duration::from_secs(600);
    assert!(!world.heartbeat().begin_anew);
}

#[test]
fn an_owner_that_was_set_back_with_the_federation_is_believed_by_its_newer_heads() {
    let (mut world, mut west, _) = World::with_peer();
    let ads = RecordKey::Export("shop/ads".parse().unwrap());
    let before = west.export("shop/ads", |_| {});
    let newest = west.say(&ads, &Payload::Withdrawal);
    let lost = west.heads();
    world.told(vec![newest, lost], 2);
    assert_eq!(world.imports(), ["shop/cart"]);
    // It says `before` again, having forgotten the rest, and then new heads, with the clock right again.
    world.told(vec![before.clone()], 3);
    assert_eq!(world.imports(), ["shop/cart"], "an older word alone counts for nothing");
    west.forget(&ads, &before);
    let heads = west.heads();
    world.told(vec![heads], 4);
    assert_eq!(world.imports(), ["shop/ads", "shop/cart"]);
}

#[test]
fn heads_are_signed_again_every_hour_and_nothing_else() {
    let mut world = World::shop();
    let published = world.published.len();
    for _ in 0..3 {
        let before = world.said("heads").unwrap();
        world.now.instant += Duration::from_secs(3601);
        world.now.system += Duration::from_secs(3601);
        assert!(world.reconciler.next_due().is_some());
        world.flush();
        let after = world.said("heads").unwrap();
        assert!(after.sequence > before.sequence && after.payload == before.payload);
    }
    assert_eq!(world.published.len(), published + 3);
}
