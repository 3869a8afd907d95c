//! A cluster that was away for an hour, and for three: with the service's own clock and its own grace.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use federation_api::federation::v1::session_response::Response;
use federation_api::federation::v1::{Hello, Welcome};
use federation_api::record::v1::{Signed, Statement};
use federation_store::{Transaction, layout};
use federator::collect::{self, AGE, Ages};
use federator::index::{Index, store_key};
use federator::protocol::{Protocol, resumes};
use federator::quota::Quota;
use prost::Message as _;

use crate::cluster::{Cluster, namespace};
use crate::keys::{CLUSTERS, name};
use crate::store::Store;
use crate::world::Mutation;

/// How often it is looked for what may be deleted.
const EVERY: u64 = 30_000;
const HOUR: u64 = 3_600_000;

struct Hours {
    start: Instant,
    now: u64,
    store: Store,
    index: Index,
    ages: Ages,
    owner: Cluster,
}

impl Hours {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            now: 0,
            store: Store::default(),
            index: Index::default(),
            ages: Ages::default(),
            owner: Cluster::new(2, [namespace(0)].into()),
        }
    }

    /// The owner says what it wants, and it is stored.
    fn say(&mut self) {
        self.owner.say(self.owner.moment(self.start, self.now));
        // The last word on each key: heads may be signed twice.
        let key = |signed: &Signed| Statement::decode(signed.message.clone()).unwrap().key;
        let records: BTreeMap<String, Signed> = self.owner.signed.drain(..).map(|it| (key(&it), it)).collect();
        let mut transaction = Transaction::new();
        for (key, signed) in records {
            let key = key.parse().unwrap();
            transaction = transaction.put(store_key(&name(2), &key).unwrap(), signed.encode_to_vec());
        }
        self.commit(&transaction);
    }

    fn commit(&mut self, transaction: &Transaction) {
        let _ = self.store.commit(transaction);
        let changed: Vec<_> = self.store.after(self.index.revision()).unwrap().collect();
        for (revision, changes) in changed {
            for (key, value) in changes {
                match value {
                    Some(value) => self.index.put(key, *revision, value).unwrap(),
                    None => self.index.remove(key),
                }
            }
            self.index.reach(*revision);
        }
    }

    /// Time goes on: something changes every minute, and what is old is collected.
    fn until(&mut self, end: u64) {
        while self.now + EVERY <= end {
            self.now += EVERY;
            let now = self.start + Duration::from_millis(self.now);
            self.ages.note(now, self.index.revision());
            let old = self.ages.older_than(now, AGE);
            let mark = self.store.modified(layout::COLLECTED);
            let quota = Quota::default();
            for collection in collect::plan(&self.index, |_, _| false, old, &quota, mark) {
                self.commit(&collection.transaction);
            }
            if self.now.is_multiple_of(2 * EVERY) {
                let minute = u32::try_from(self.now / (2 * EVERY)).unwrap();
                // One comes and goes; one goes for good, every ten minutes.
                if minute.is_multiple_of(2) {
                    self.owner.wanted.insert((0, 1), minute);
                } else {
                    self.owner.wanted.remove(&(0, 1));
                }
                if minute.is_multiple_of(10) {
                    self.owner.wanted.remove(&(0, 10 + minute as usize / 10));
                }
                self.say();
            }
        }
        self.now = end;
    }

    /// The receiver comes back: whether it goes on, and how many records it is told.
    fn session(&self, receiver: &mut Cluster) -> (bool, usize) {
        let hello: Hello = receiver.hello();
        let resumed = resumes(&hello, "0", &self.index);
        let now = self.start + Duration::from_millis(self.now);
        let mut protocol =
            Protocol::open(receiver.name(), &hello, resumed, &self.index, Duration::from_secs(5), now).unwrap();
        receiver.connected(&Welcome { incarnation: "0".to_owned(), resumed, ..Welcome::default() }, Mutation::None);
        let mut told = 0;
        while let Some(response) = protocol.next(&self.index, now).unwrap() {
            match response {
                Response::Changes(changes) => {
                    told += changes.records.len();
                    let (records, generations) = (&changes.records, &[0; CLUSTERS]);
                    receiver.changes("0", changes.revision, records, generations, Mutation::None).unwrap();
                }
                Response::SnapshotComplete(complete) => {
                    receiver.complete("0", complete.revision, &complete.namespaces).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        (resumed, told)
    }
}

#[test]
fn a_cluster_that_comes_back_after_an_hour_resumes_and_later_lets_go_of_what_was_collected() {
    let mut hours = Hours::new();
    hours.owner.wanted = (0..40).map(|service| ((0, service), 0)).collect();
    hours.say();
    let mut receiver = Cluster::new(0, [namespace(0)].into());
    assert_eq!(hours.session(&mut receiver), (false, 41), "everything, and the heads");
    hours.until(HOUR);
    let (resumed, told) = hours.session(&mut receiver);
    assert!(resumed, "for an hour nothing is collected that it lacks");
    assert_eq!(told, 8, "the one that came and went, the six that went for good, and the heads; each once");
    assert_eq!(receiver.believed(&name(2)), hours.owner.exported());

    // Withdrawals of the first hour are gone by then.
    hours.until(4 * HOUR);
    assert!(hours.index.collected() > 0);
    let (resumed, told) = hours.session(&mut receiver);
    assert!(!resumed, "only a snapshot can tell what is missing");
    assert!(told < 41 && told > hours.owner.exported().len(), "{told}");
    assert_eq!(receiver.believed(&name(2)), hours.owner.exported(), "no ghost is left");
}
