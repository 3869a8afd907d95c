//! A cluster whose control-plane was restored from an old backup: it cannot roll its exports back, neither with the words
//! it had forgotten nor with an older membership.

use std::collections::BTreeMap;
use std::time::SystemTime;

use federation::RecordKey;
use federation_api::client::federation::{SessionCursor, SessionEvent};
use federation_api::federation::v1::refusal::Reason;
use federation_api::payload::Payload;
use federation_api::publications::Publications;
use federation_api::record::v1::{Signed, Statement};
use federation_api::records::{Applied, Patience, Received};
use prost::Message as _;

use super::plane::{Client, Plane, export, key};
use super::until;

/// The service account tells one version from another.
pub(crate) fn wanted(exports: &[(&str, &str)]) -> BTreeMap<RecordKey, Payload> {
    let version = |name: &str, version: &str| {
        let Payload::Export(mut export) = export(name) else { panic!("no export") };
        export.service_accounts = vec![version.to_owned()];
        export.created = SystemTime::UNIX_EPOCH;
        Payload::Export(export)
    };
    exports.iter().map(|(name, said)| (key(name), version(name, said))).collect()
}

/// Says what is wanted from now on, and takes the answers.
pub(crate) async fn say(client: &mut Client, own: &mut Publications, exports: &[(&str, &str)]) {
    let news = own.say(&wanted(exports), SystemTime::now()).unwrap();
    let results = client.publish_all(news).await;
    assert!(results.iter().all(|result| result.refusal.is_none()), "{results:?}");
    own.answer(&results);
}

/// A control-plane that believes what it is told by the rules of all.
pub(crate) struct Receiver {
    pub(crate) client: Client,
    pub(crate) received: Received,
    /// Every version of every export that it ever believed, in order.
    pub(crate) history: Vec<BTreeMap<String, String>>,
}

impl Receiver {
    pub(crate) async fn open(plane: &Plane, cluster: &str, cursor: SessionCursor) -> Self {
        let client = plane.client(cluster, &["shop"], false, cursor).await;
        let patience = Patience {
            first: std::time::Duration::from_secs(60),
            longest: std::time::Duration::from_secs(60),
            withdrawals: 100,
        };
        let mut received = Received::new(patience);
        received.session_begins(client.welcome.resumed);
        Self { client, received, history: Vec::new() }
    }

    /// Its session goes on, or begins again, with another federator.
    pub(crate) async fn moved(&mut self, plane: &Plane, cluster: &str, cursor: SessionCursor) {
        self.client = plane.client(cluster, &["shop"], false, cursor).await;
        self.received.session_begins(self.client.welcome.resumed);
    }

    fn believed(&self) -> BTreeMap<String, String> {
        let exports = self.received.records().iter().filter_map(|record| match &record.payload {
            Payload::Export(export) => Some((export.service.name.to_string(), export.service_accounts.concat())),
            _ => None,
        });
        exports.collect()
    }

    /// Takes what comes until it believes this of east.
    pub(crate) async fn until_believes(&mut self, plane: &Plane, exports: &[(&str, &str)]) -> SessionCursor {
        let wanted: BTreeMap<_, _> =
            exports.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect();
        let mut last = SessionCursor::default();
        while self.believed() != wanted || last == SessionCursor::default() {
            let event = until(&mut self.client, &format!("{wanted:?}"), |event| match event {
                SessionEvent::Changes { .. } | SessionEvent::SnapshotComplete { .. } => Some(event),
                SessionEvent::Disconnected { reason, .. } => panic!("{reason}"),
                _ => None,
            })
            .await;
            last = self.take(plane, event);
        }
        last
    }

    fn take(&mut self, plane: &Plane, event: SessionEvent) -> SessionCursor {
        let cursor = match event {
            SessionEvent::Changes { records, cursor, .. } => {
                for signed in records {
                    let statement = plane.member("east").verify(&signed).unwrap();
                    assert_ne!(self.received.apply(statement), Applied::Equivocation);
                }
                self.received.settle();
                cursor
            }
            SessionEvent::SnapshotComplete { namespaces, cursor, .. } => {
                self.received.complete(&namespaces);
                cursor
            }
            other => panic!("{other:?}"),
        };
        if self.history.last() != Some(&self.believed()) {
            self.history.push(self.believed());
        }
        self.client.session.applied(cursor.clone());
        cursor
    }
}

#[tokio::test]
async fn a_cluster_restored_from_an_old_backup_cannot_roll_its_exports_back() {
    let plane = Plane::start().await;
    let mut west = Receiver::open(&plane, "west", SessionCursor::default()).await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut own = plane.publications("east", Vec::new());
    say(&mut east, &mut own, &[("cart", "1"), ("old", "1")]).await;
    let backup = own.envelopes();
    say(&mut east, &mut own, &[("cart", "2"), ("new", "1")]).await;
    west.until_believes(&plane, &[("cart", "2"), ("new", "1")]).await;
    drop(east);

    // Back from the backup: it says again what it knows, as to every federation that it has not published to.
    let mut own = plane.publications("east", backup);
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let newest = own_words(&mut east).await;
    let results = east.publish_all(own.envelopes()).await;
    for result in &results {
        assert_eq!(result.refusal.as_ref().map(|refusal| refusal.reason()), Some(Reason::Stale), "{result:?}");
    }
    own.answer(&results);
    // It is told its own words, those that it has forgotten among them, and goes on above them.
    assert!(newest.into_iter().filter(|signed| own.told(signed.clone())).count() > 0);
    say(&mut east, &mut own, &[("cart", "3"), ("old", "2")]).await;
    west.until_believes(&plane, &[("cart", "3"), ("old", "2")]).await;
    for (before, after) in std::iter::zip(&west.history, &west.history[1..]) {
        let version = |held: &BTreeMap<String, String>| held.get("cart").map_or(0, |it| it.parse::<u32>().unwrap());
        assert!(version(after) >= version(before), "cart went back: {:?}", west.history);
    }
    let newer = west.history.iter().skip_while(|held| held.get("cart").is_none_or(|it| it == "1"));
    assert!(newer.clone().count() >= 2, "{:?}", west.history);
    assert!(newer.into_iter().all(|held| held.get("old").is_none_or(|it| it == "2")), "{:?}", west.history);
}

/// What a publisher is told of itself in a snapshot.
async fn own_words(client: &mut Client) -> Vec<Signed> {
    let mut words = Vec::new();
    until(client, "the snapshot", |event| match event {
        SessionEvent::Changes { records, .. } => {
            words.extend(records);
            None
        }
        SessionEvent::SnapshotComplete { .. } => Some(()),
        _ => None,
    })
    .await;
    words
}

#[tokio::test]
async fn a_backup_of_an_older_membership_is_fenced_by_its_generation() {
    let mut plane = Plane::start().await;
    let mut first = plane.publications("east", Vec::new());
    let old = first.say(&wanted(&[("cart", "1")]), SystemTime::now()).unwrap();
    plane.join("east");
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut own = plane.publications("east", Vec::new());
    say(&mut east, &mut own, &[("cart", "2")]).await;
    let mut west = Receiver::open(&plane, "west", SessionCursor::default()).await;
    west.until_believes(&plane, &[("cart", "2")]).await;
    // Its clock may be years ahead: the generation counts first.
    let newest = own.last_sequence() + 1_000_000_000_000;
    let mut ahead = Statement::decode(old[0].message.clone()).unwrap();
    let generation = ahead.generation;
    ahead.sequence = newest;
    let speaker = plane.publications("east", Vec::new());
    assert!(speaker.speaker().generation > generation);
    for signed in [old[0].clone(), first.speaker().key.sign_statement(&ahead)] {
        assert_eq!(east.publish(signed).await, Err(Reason::NotYours));
    }
    say(&mut east, &mut own, &[("cart", "3")]).await;
    west.until_believes(&plane, &[("cart", "3")]).await;
    assert_eq!(west.history.iter().map(|held| held["cart"].clone()).collect::<Vec<_>>(), ["2", "3"]);
}
