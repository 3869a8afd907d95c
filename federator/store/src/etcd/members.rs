//! The endpoint list: one connection a member, requests to one of them, fail-over to the others.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error as ClientError, Identity, ResponseHeader, TlsOptions};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::config::EtcdConfig;
use super::fault::{Fault, HistoryReplaced};
use super::keys::revision;
use super::metrics::Metrics;
use crate::Revision;

/// How long one member may take for an answer before the next one is asked. An election takes one to two seconds.
pub(super) const ATTEMPT: Duration = Duration::from_secs(1);
/// How long a request may take with all its attempts.
pub(super) const DEADLINE: Duration = Duration::from_secs(8);
/// Between two attempts: enough for a member that refuses at once not to be asked in a tight loop.
pub(super) const PAUSE: Duration = Duration::from_millis(50);
/// How long a TCP and TLS handshake may take.
const CONNECT: Duration = Duration::from_millis(800);
/// How often an idle connection is pinged. etcd hangs up on clients that ping more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);
/// How long the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The members and which of them is asked.
#[derive(Debug)]
pub(super) struct Members {
    config: EtcdConfig,
    members: Vec<Member>,
    preferred: AtomicUsize,
    /// etcd's number for the cluster, once heard; 0 before.
    cluster: AtomicU64,
    /// The newest revision that any answer named.
    newest: AtomicU64,
    pub(super) metrics: Metrics,
}

/// One endpoint. The lock is held for a look only.
#[derive(Debug)]
struct Member {
    endpoint: String,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    client: Option<Client>,
    /// Counts up with each connection that was given up.
    generation: u64,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// A connection to use, and what to say when it fails.
pub(super) struct Link {
    pub(super) client: Client,
    member: usize,
    generation: u64,
}

impl Members {
    pub(super) fn new(config: EtcdConfig, metrics: Metrics) -> Self {
        let member = |endpoint: &String| Member { endpoint: endpoint.clone(), connection: Mutex::default() };
        let members: Vec<Member> = config.endpoints.iter().map(member).collect();
        // Replicas begin at different members.
        let preferred = AtomicUsize::new(rand::random_range(0..members.len().max(1)));
        Self { config, members, preferred, cluster: AtomicU64::new(0), newest: AtomicU64::new(0), metrics }
    }

    /// A connection to the member that is asked now; made when it is used first.
    pub(super) async fn link(&self) -> Result<Link, Fault> {
        let index = self.preferred.load(Ordering::Relaxed);
        let Some(member) = self.members.get(index) else {
            return Err(Fault::Refused("endpoints: none".into()));
        };
        let known = |connection: &Connection| {
            let client = connection.client.clone()?;
            Some(Link { client, member: index, generation: connection.generation })
        };
        let existing = known(&member.connection.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(link) = existing {
            return Ok(link);
        }
        let client = self.connect(&member.endpoint).await?;
        let mut connection = member.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let client = connection.client.get_or_insert(client).clone();
        Ok(Link { client, member: index, generation: connection.generation })
    }

    async fn connect(&self, endpoint: &str) -> Result<Client, Fault> {
        let read = async |path: &std::path::Path| {
            // It may be missing for a moment while it is renewed.
            tokio::fs::read(path).await.map_err(|error| Fault::NotDone(format!("{}: {error}", path.display()).into()))
        };
        let authority = Certificate::from_pem(read(&self.config.ca_file).await?);
        let identity =
            Identity::from_pem(read(&self.config.certificate_file).await?, read(&self.config.key_file).await?);
        let options = ConnectOptions::new()
            .with_tls(TlsOptions::new().ca_certificate(authority).identity(identity))
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        Ok(Client::connect([endpoint], Some(options)).await?)
    }

    /// The next request goes to another member, over a new connection to this one when its turn comes again.
    pub(super) fn give_up(&self, link: &Link, reason: &dyn std::fmt::Display) {
        let Some(member) = self.members.get(link.member) else { return };
        {
            let mut connection = member.connection.lock().unwrap_or_else(PoisonError::into_inner);
            if connection.generation == link.generation {
                connection.generation += 1;
                connection.client = None;
            }
        }
        let next = (link.member + 1) % self.members.len();
        let moved = self.preferred.compare_exchange(link.member, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if moved && next != link.member {
            info!(endpoint = member.endpoint, next = self.members[next].endpoint, %reason, "failing over");
        }
    }

    /// Asks one member once.
    pub(super) async fn attempt<T, F>(
        &self,
        request: &'static str,
        ask: impl FnOnce(Client) -> F + Send,
    ) -> Result<T, Fault>
    where
        T: Answer,
        F: Future<Output = Result<T, ClientError>> + Send,
    {
        let link = self.link().await.inspect_err(|fault| self.metrics.failed(request, fault))?;
        let (asked, known) = (Instant::now(), self.newest());
        let answer = match timeout(ATTEMPT, ask(link.client.clone())).await {
            Ok(answer) => answer.map_err(Fault::from),
            Err(elapsed) => Err(Fault::Unknown(Box::new(elapsed))),
        };
        let answer =
            answer.and_then(|answer| self.check(answer.header(), T::LINEARIZABLE.then_some(known)).map(|()| answer));
        match &answer {
            Ok(_) => self.metrics.answered(asked.elapsed()),
            Err(fault) => {
                self.metrics.failed(request, fault);
                if fault.is_transient() {
                    debug!(request, error = ?fault, "attempt failed");
                    self.give_up(&link, fault);
                }
            }
        }
        answer
    }

    /// Asks until there is an answer or the deadline: for what may be done twice.
    pub(super) async fn repeat<T, F>(
        &self,
        request: &'static str,
        ask: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<T, Fault>
    where
        T: Answer,
        F: Future<Output = Result<T, ClientError>> + Send,
    {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.attempt(request, &ask).await {
                Err(fault) if fault.is_transient() && Instant::now() + PAUSE < deadline => sleep(PAUSE).await,
                answer => return answer,
            }
        }
    }

    /// The newest revision heard of.
    pub(super) fn newest(&self) -> Revision {
        self.newest.load(Ordering::Relaxed)
    }

    /// etcd's number for the cluster; 0 before any answer.
    pub(super) fn cluster(&self) -> u64 {
        self.cluster.load(Ordering::Relaxed)
    }

    /// Takes note of an answer's header. A linearizable answer to a question asked after revision `known` was heard of
    /// cannot be older, unless the history was exchanged.
    pub(super) fn check(&self, header: Option<&ResponseHeader>, known: Option<Revision>) -> Result<(), Fault> {
        let Some(header) = header else { return Ok(()) };
        let before = self.cluster.compare_exchange(0, header.cluster_id(), Ordering::Relaxed, Ordering::Relaxed);
        if before.is_err_and(|cluster| cluster != header.cluster_id()) {
            return Err(replaced("its cluster has another id"));
        }
        if known.is_some_and(|known| revision(header.revision()) < known) {
            return Err(replaced("its revision went back"));
        }
        if known.is_some() {
            self.newest.fetch_max(revision(header.revision()), Ordering::Relaxed);
        }
        Ok(())
    }
}

pub(super) fn replaced(how: &'static str) -> Fault {
    Fault::Replaced(Box::new(HistoryReplaced(how)))
}

/// An answer with etcd's header.
pub(super) trait Answer: Send {
    /// Its revision is the cluster's at some time between question and answer.
    const LINEARIZABLE: bool;
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! answers {
    ($($answer:ident: $linearizable:literal),+) => {$(
        impl Answer for etcd_client::$answer {
            const LINEARIZABLE: bool = $linearizable;
            fn header(&self) -> Option<&ResponseHeader> {
                etcd_client::$answer::header(self)
            }
        }
    )+};
}

// A member fills in the headers of leases from what it has applied itself, which may lag.
answers! {
    GetResponse: true, TxnResponse: true, CompactionResponse: false, LeaseGrantResponse: false, LeaseRevokeResponse: false
}
