//! Root and intermediate replaced twice under a load of real handshakes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use mesh_tls::{
    ClientAuth, ExpectedPeer, Identity, TrustStore, client_config,
    handshake::{accept, connect},
    new_key_and_csr, server_config,
};
use rustls_pki_types::{CertificateDer, ServerName};
use spiffe_identity::{Bundle, Pace};
use svid_issuer::{Authority, RootRotation, RootStep};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use crate::{DAY, cart, east};

const PATIENCE: Duration = Duration::from_secs(30);

/// Pairs of a client and a server that shake hands without a pause.
const PAIRS: usize = 4;

/// What passes on the rotation's clock with each step. Handshakes see the real clock, and so certificates that are younger.
const STEP: Duration = Duration::from_secs(30 * 60);

/// The rotation's clock begins in the past, so that what is made by it is valid already.
const HEAD_START: Duration = Duration::from_secs(60 * 3600);

/// Handshakes that happen at least between two steps.
const BETWEEN: u64 = 4;

/// A workload that renews its SVID at half of its life on the rotation's clock.
struct Workload {
    identity: Identity,
    renewed: SystemTime,
}

impl Workload {
    fn new(authority: &Authority, now: SystemTime) -> Self {
        let workload = Self { identity: Identity::empty(), renewed: now };
        workload.take_svid(authority);
        workload
    }

    fn renew(&mut self, authority: &Authority, now: SystemTime) {
        if now >= self.renewed + DAY / 2 {
            self.take_svid(authority);
            self.renewed = now;
        }
    }

    fn take_svid(&self, authority: &Authority) {
        let (key, csr) = new_key_and_csr().unwrap();
        let svid = authority.issue(&csr, &cart(), DAY, SystemTime::now()).unwrap();
        self.identity.replace(svid.chain, key).unwrap();
    }
}

fn publish(trust: &TrustStore, sequence: u64, x509_authorities: Vec<CertificateDer<'static>>) {
    trust.insert(Bundle { trust_domain: east(), x509_authorities, sequence, refresh_hint: None });
}

/// Shakes hands until it is aborted; a failure ends it.
async fn load(client: Identity, server: Identity, trust: TrustStore, done: Arc<AtomicU64>) -> String {
    let server = server_config(&server, &trust, ClientAuth::Required, &[b"h2"]);
    let client = client_config(Some(&client), &trust, ExpectedPeer::exactly(cart()), &[b"h2"]);
    loop {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let server_side = async {
            let mut stream = accept(far, &server, PATIENCE).await.map_err(|error| error.to_string())?;
            stream.write_all(b"!").await.map_err(|error| error.to_string())
        };
        let client_side = async {
            let name = ServerName::try_from("cart").unwrap();
            let mut stream = connect(near, &client, name, PATIENCE).await.map_err(|error| error.to_string())?;
            stream.read_u8().await.map_err(|error| error.to_string())
        };
        if let (Err(error), _) | (_, Err(error)) = tokio::join!(server_side, client_side) {
            return error;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until more handshakes have happened, or says why no more do.
async fn between(load: &mut JoinSet<String>, done: &AtomicU64) {
    let enough = done.load(Ordering::Relaxed) + BETWEEN;
    let waiting = async {
        while done.load(Ordering::Relaxed) < enough {
            if let Some(failed) = load.try_join_next() {
                panic!("a handshake failed: {}", failed.unwrap());
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn everything_is_rotated_twice_under_load_without_a_failed_handshake() {
    let directory = TempDir::new().unwrap();
    let mut clock = SystemTime::now() - HEAD_START;
    let authority = Arc::new(Authority::open_or_create(directory.path(), &east(), clock).unwrap());
    let trust = TrustStore::new();
    publish(&trust, 1, authority.roots());
    let mut workloads: Vec<_> = (0..2 * PAIRS).map(|_| Workload::new(&authority, clock)).collect();
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for pair in workloads.chunks(2) {
        let (client, server) = (pair[0].identity.clone(), pair[1].identity.clone());
        tasks.spawn(load(client, server, trust.clone(), done.clone()));
    }
    let (mut epoch, mut roots, mut intermediates) = (1, vec![authority.root()], Vec::new());
    let pace = Pace { longest_svid: DAY, ..Pace::default() };
    for _ in 0..2 {
        let mut rotation = RootRotation::begin(authority.clone(), pace).unwrap();
        rotation.update(|rotation| rotation.connected("east")).unwrap();
        loop {
            match rotation.step(clock).unwrap() {
                RootStep::Done => break,
                RootStep::Wait(_) => clock += STEP,
                RootStep::Publish(published) => {
                    epoch += 1;
                    publish(&trust, epoch, published);
                    rotation.published(epoch, clock).unwrap();
                    rotation.update(|rotation| rotation.acknowledged("east", epoch)).unwrap();
                }
            }
            workloads.iter_mut().for_each(|workload| workload.renew(&authority, clock));
            between(&mut tasks, &done).await;
        }
        roots.push(authority.root());
        intermediates.push(workloads[0].identity.chain()[1].clone());
    }
    assert_ne!(roots[1], roots[0]);
    assert_ne!(roots[2], roots[1]);
    assert_ne!(intermediates[0], intermediates[1]);
    assert!(clock < SystemTime::now());
    assert_eq!(trust.bundle(&east()).unwrap().x509_authorities, roots[2..], "the old ones are gone");
    assert!(done.load(Ordering::Relaxed) > 300);
}
