//! The session's contract as it was first written, with the service and with the client of today: old and new
//! control-planes and replicas work together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use federation::RecordKey;
use federation_api::client::federation::{Session, SessionCursor, SessionEvent, SessionOptions};
use federation_api::federation::v1 as today;
use federation_api::payload::Payload;
use federation_api::record::v1::{Signed as SignedToday, Statement as StatementToday};
use federator::quota::Quota;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::plane::{Client, Plane, export, key};
use super::{eventually, until};
use contract::federation::v1 as before;
use contract::federation::v1::federation_client::FederationClient;
use contract::federation::v1::federation_server::{Federation, FederationServer};
use contract::federation::v1::session_request::Request as Say;
use contract::federation::v1::session_response::Response as Hear;
use contract::record::v1::{Signed, Statement};

/// What the .proto files below `previous/` generate; `generated.rs` of `federation-api` keeps it so.
mod contract {
    pub(super) mod record {
        #[expect(unreachable_pub, reason = "generated for crates that offer it")]
        pub(crate) mod v1 {
            include!("previous/generated/isthmus.record.v1.rs");
        }
    }
    pub(super) mod federation {
        #[expect(unreachable_pub, reason = "generated for crates that offer it")]
        pub(crate) mod v1 {
            include!("previous/generated/isthmus.federation.v1.rs");
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(20);
/// Well within the heartbeats of the test's replicas.
const BEAT: Duration = Duration::from_millis(100);

/// A control-plane that speaks the contract before.
struct Older {
    requests: mpsc::Sender<before::SessionRequest>,
    answers: Streaming<before::SessionResponse>,
    welcome: before::Welcome,
    applied: Arc<AtomicU64>,
}

impl Older {
    async fn open(plane: &Plane, cluster: &str, publisher: bool, cursor: (String, u64)) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        let hello = before::Hello {
            versions: vec![1],
            replica: "older".to_owned(),
            incarnation: cursor.0,
            revision: cursor.1,
            namespaces: vec!["shop".to_owned()],
            publisher,
        };
        say(&requests, Say::Hello(hello)).await;
        let mut client = FederationClient::new(plane.channel(cluster));
        let answers = client.session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let applied = Arc::new(AtomicU64::new(cursor.1));
        // It ends with the session.
        tokio::spawn(beat(requests.downgrade(), Arc::clone(&applied)));
        let mut older = Self { requests, answers, welcome: before::Welcome::default(), applied };
        older.welcome = older
            .until("welcome", |hear| match hear {
                Hear::Welcome(welcome) => Some(welcome),
                other => panic!("{other:?} came first"),
            })
            .await;
        assert_eq!(older.welcome.version, 1);
        older
    }

    async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(Hear) -> Option<T>) -> T {
        let found = async {
            loop {
                let answer = self.answers.message().await.unwrap().unwrap();
                // What the contract before does not know would be nothing.
                if let Some(found) = answer.response.and_then(&mut wanted) {
                    return found;
                }
            }
        };
        tokio::time::timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("{what}: not in time"))
    }

    async fn publish(&mut self, records: Vec<Signed>) -> Vec<before::PublishResult> {
        say(&self.requests, Say::Publish(before::Publish { records })).await;
        self.until("the results", |hear| match hear {
            Hear::Published(published) => Some(published.results),
            _ => None,
        })
        .await
    }

    /// Waits for the snapshot's end.
    async fn until_complete(&mut self) -> before::SnapshotComplete {
        let complete = self.until("the snapshot's marker", |hear| match hear {
            Hear::SnapshotComplete(complete) => Some(complete),
            _ => None,
        });
        let complete = complete.await;
        self.applied.store(complete.revision, Ordering::Relaxed);
        complete
    }

    /// The next records, which count as applied then.
    async fn records(&mut self) -> Vec<Signed> {
        let changes = self.until("changes", |hear| match hear {
            Hear::Changes(changes) => Some(changes),
            _ => None,
        });
        let changes = changes.await;
        self.applied.store(changes.revision, Ordering::Relaxed);
        changes.records
    }

    fn cursor(&self) -> (String, u64) {
        (self.welcome.incarnation.clone(), self.applied.load(Ordering::Relaxed))
    }
}

async fn say(requests: &mpsc::Sender<before::SessionRequest>, request: Say) {
    requests.send(before::SessionRequest { request: Some(request) }).await.unwrap();
}

async fn beat(requests: mpsc::WeakSender<before::SessionRequest>, applied: Arc<AtomicU64>) {
    while let Some(requests) = requests.upgrade() {
        let applied_revision = applied.load(Ordering::Relaxed);
        let request = Some(Say::Heartbeat(before::ClientHeartbeat { applied_revision }));
        let _ = requests.send(before::SessionRequest { request }).await;
        drop(requests);
        tokio::time::sleep(BEAT).await;
    }
}

/// What a cluster says, encoded by the code before, under its present key.
fn sign(plane: &Plane, cluster: &str, sequence: u64, name: &str) -> Signed {
    let today = plane.sign(cluster, sequence, &key(name), &export(name));
    let statement = Statement::decode(today.message.clone()).unwrap();
    let message = statement.encode_to_vec();
    let signed = plane.speaker(cluster).key.sign_statement(&StatementToday::decode(message.as_slice()).unwrap());
    assert_eq!(signed.message, message, "the envelope holds what was encoded before");
    Signed { message: signed.message, signature: signed.signature }
}

fn today(signed: &Signed) -> SignedToday {
    SignedToday { message: signed.message.clone(), signature: signed.signature.clone() }
}

fn key_of(signed: &Signed) -> String {
    Statement::decode(signed.message.clone()).unwrap().key
}

#[test]
fn the_contract_has_grown_since() {
    let hello = today::Hello { keeps_refused: true, ..today::Hello::default() };
    let refusal =
        today::Refusal { retry_after_ms: 5, reason: today::refusal::Reason::NoSpace.into(), ..Default::default() };
    assert_eq!(before::Hello::decode(hello.encode_to_vec().as_slice()).unwrap(), before::Hello::default());
    let older = before::Refusal::decode(refusal.encode_to_vec().as_slice()).unwrap();
    assert!(before::refusal::Reason::try_from(older.reason).is_err());
    assert_ne!(older.encode_to_vec(), refusal.encode_to_vec(), "it knows no retry_after_ms");
}

/// Both read the same out of it.
fn alike<Before: prost::Message + Default>(today: &impl prost::Message) {
    let bytes = today.encode_to_vec();
    assert_eq!(Before::decode(bytes.as_slice()).unwrap().encode_to_vec(), bytes);
}

#[test]
fn the_chain_of_trust_is_read_alike() {
    use federation_api::record::v1 as record;

    let text = || "mesh.example".to_owned();
    let signed = || SignedToday { message: vec![1, 2].into(), signature: vec![3; 64].into() };
    let delegation =
        record::Delegation { federation: text(), generation: 7, namespaces: vec![text()], ..Default::default() };
    alike::<contract::record::v1::Delegation>(&delegation);
    let grant = record::PublishKeyGrant {
        cluster: text(),
        publish_public_key: vec![4; 32],
        after_sequence: 9,
        ..Default::default()
    };
    alike::<contract::record::v1::PublishKeyGrant>(&grant);
    alike::<contract::record::v1::Member>(&record::Member { delegation: Some(signed()), grants: vec![signed()] });
    let eviction = record::Eviction { cluster: text(), ..Default::default() };
    alike::<contract::record::v1::Eviction>(&eviction);
    let list = record::DenyList { federation: text(), epoch: 3, evictions: vec![eviction], ..Default::default() };
    alike::<contract::record::v1::DenyList>(&list);
    alike::<contract::record::v1::JoinToken>(&record::JoinToken { delegation: Some(signed()), ..Default::default() });
}

#[tokio::test]
async fn a_control_plane_of_the_contract_before_publishes_hears_acknowledges_and_resumes() {
    let plane = Plane::start().await;
    let mut east = Older::open(&plane, "east", true, Default::default()).await;
    assert!(east.welcome.session_epoch > 0 && !east.welcome.resumed);
    let mut west = Older::open(&plane, "west", false, Default::default()).await;
    assert_eq!(west.until_complete().await.namespaces, ["shop"]);
    let mut north = plane.client("north", &["shop"], true, SessionCursor::default()).await;
    let cart = sign(&plane, "east", 10, "cart");
    let results = east.publish(vec![cart.clone(), sign(&plane, "west", 11, "cart")]).await;
    assert!(results[0].revision > 0 && results[0].refusal.is_none(), "{results:?}");
    assert_eq!((results[0].key.as_str(), results[0].sequence), ("exports/shop/cart", 10));
    assert_eq!(results[1].refusal.as_ref().unwrap().reason(), before::refusal::Reason::NotYours);
    assert_eq!(west.records().await, std::slice::from_ref(&cart));
    assert_eq!(north.next_record().await, today(&cart), "the client of today hears the same bytes");
    let gateways = plane.sign("north", 12, &RecordKey::Gateways, &Payload::Gateways(Vec::new()));
    assert_eq!(north.publish(gateways.clone()).await, Ok(()));
    assert_eq!(west.records().await.iter().map(today).collect::<Vec<_>>(), [gateways], "and the other way round");

    // What it acknowledges is known.
    let (_, applied) = west.cursor();
    let replica = plane.replica(0).replica.clone();
    eventually("the acknowledgement arrives", || {
        let sessions = replica.registry.list(Instant::now(), replica.cache.revision());
        sessions
            .iter()
            .any(|it| (it.cluster.as_str(), it.applied_revision, it.unacknowledged_ms) == ("west", applied, 0))
    })
    .await;

    // It resumes, here or at another replica.
    let cursor = west.cursor();
    drop(west);
    let later = sign(&plane, "east", 13, "later");
    assert!(east.publish(vec![later.clone()]).await[0].refusal.is_none());
    let mut west = Older::open(&plane, "west", false, cursor).await;
    assert!(west.welcome.resumed);
    assert_eq!(west.records().await, [later], "only what changed since");
    say(&west.requests, Say::Interest(before::Interest { namespaces: vec!["shop".to_owned(), "other".to_owned()] }))
        .await;
    while !west.until_complete().await.namespaces.contains(&"other".to_owned()) {}
    let lost = west.until("liveness", |hear| match hear {
        Hear::Liveness(liveness) => liveness.clusters.into_iter().find(|it| it.cluster == "east" && !it.connected),
        _ => None,
    });
    drop(east);
    lost.await;
}

#[tokio::test]
async fn who_takes_every_refusal_for_the_last_word_is_answered_when_it_is_known() {
    let plane = Plane::with_quota(Quota { updates_per_second: 20, updates_burst: 2, ..Quota::default() }).await;
    let mut east = Older::open(&plane, "east", true, Default::default()).await;
    let names = ["a", "b", "c", "d", "e"];
    let mut records: Vec<_> = std::iter::zip(10.., names).map(|(at, name)| sign(&plane, "east", at, name)).collect();
    records.push(sign(&plane, "west", 20, "f"));
    let results = east.publish(records.clone()).await;
    assert_eq!(
        results.iter().map(|it| it.key.clone()).collect::<Vec<_>>(),
        records.iter().map(key_of).collect::<Vec<_>>()
    );
    assert!(
        results[..5].iter().all(|it| it.refusal.is_none() && it.revision > 0),
        "held back, not refused: {results:?}"
    );
    assert_eq!(
        results[5].refusal.as_ref().unwrap().reason(),
        before::refusal::Reason::NotYours,
        "that is the last word"
    );
}

/// The service's end of a session.
struct Call {
    requests: Streaming<before::SessionRequest>,
    answers: mpsc::Sender<Result<before::SessionResponse, Status>>,
}

impl Call {
    async fn answer(&self, hear: Hear) {
        self.answers.send(Ok(before::SessionResponse { response: Some(hear) })).await.unwrap();
    }

    /// The next request that is no heartbeat.
    async fn request(&mut self) -> Say {
        let next = async {
            loop {
                match self.requests.message().await.unwrap().unwrap().request.unwrap() {
                    Say::Heartbeat(_) => {}
                    request => return request,
                }
            }
        };
        tokio::time::timeout(DEADLINE, next).await.unwrap()
    }

    async fn welcome(&mut self, resumed: bool) -> before::Hello {
        let Say::Hello(hello) = self.request().await else { panic!("no hello came first") };
        let limits = before::Limits { publish_records: 10, record_bytes: 65_536, exports: 100 };
        let welcome = before::Welcome {
            version: 1,
            incarnation: "one".to_owned(),
            session_epoch: 1,
            heartbeat_interval_ms: 20_000,
            limits: Some(limits),
            resumed,
            replica: "older".to_owned(),
        };
        self.answer(Hear::Welcome(welcome)).await;
        hello
    }
}

/// A replica that speaks the contract before; what it says is the test's.
struct Puppet(mpsc::Sender<Call>);

#[tonic::async_trait]
impl Federation for Puppet {
    type SessionStream = ReceiverStream<Result<before::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<before::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (answers, receiver) = mpsc::channel(8);
        let _ = self.0.send(Call { requests: request.into_inner(), answers }).await;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tokio::test]
async fn the_client_of_today_works_with_a_replica_of_the_contract_before() {
    let plane = Plane::start().await;
    let (calls, mut called) = mpsc::channel(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Server::builder().add_service(FederationServer::new(Puppet(calls)));
    let serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let namespaces = ["shop".parse().unwrap()].into();
    let options = SessionOptions { namespaces, publisher: true, ..SessionOptions::default() };
    let (session, events) = Session::open(channel, options);
    let mut client = Client::of(session, events);

    let mut call = called.recv().await.unwrap();
    let hello = call.welcome(false).await;
    assert_eq!((hello.versions, hello.publisher, hello.namespaces), (vec![1], true, vec!["shop".to_owned()]));
    client.until_connected().await;
    let cart = sign(&plane, "west", 10, "cart");
    call.answer(Hear::Changes(before::Changes { revision: 7, records: vec![cart.clone()] })).await;
    assert_eq!(client.next_record().await, today(&cart));
    let namespaces = vec!["shop".to_owned()];
    call.answer(Hear::SnapshotComplete(before::SnapshotComplete { revision: 7, namespaces })).await;
    client.until_complete().await;

    // A refusal that says nothing of later is the last word.
    let own: Vec<_> = [(20, "a"), (21, "b")].map(|(at, name)| today(&sign(&plane, "east", at, name))).into();
    client.session.publish(own);
    let Say::Publish(publish) = call.request().await else { panic!("nothing is published") };
    let refusal =
        before::Refusal { reason: before::refusal::Reason::Quota.into(), detail: "exports: too many".to_owned() };
    let result = |at: usize, revision, refusal| {
        let statement = Statement::decode(publish.records[at].message.clone()).unwrap();
        before::PublishResult { key: statement.key, sequence: statement.sequence, revision, refusal }
    };
    let results = vec![result(0, 8, None), result(1, 0, Some(refusal))];
    call.answer(Hear::Published(before::Published { results })).await;
    let results = until(&mut client, "the results", |event| match event {
        SessionEvent::Published(results) => Some(results),
        _ => None,
    });
    assert_eq!(results.await[1].refusal.as_ref().unwrap().retry_after_ms, 0);
    assert_eq!(client.session.unanswered(), 0);

    // It is sent away, and resumes.
    call.answer(Hear::GoAway(before::GoAway { reason: "draining".to_owned(), retry_after_ms: 1 })).await;
    let mut call = called.recv().await.unwrap();
    let hello = call.welcome(true).await;
    assert_eq!((hello.incarnation.as_str(), hello.revision), ("one", 7));
    assert!(client.until_connected().await.resumed);
    serving.abort();
}
