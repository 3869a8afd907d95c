//! One of several replicas leads: a Lease, as every Kubernetes controller holds one.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::FIELD_MANAGER;

/// The Lease's name.
const LEASE: &str = "isthmus-control-plane";

/// A Lease that nobody has renewed for this long may be taken.
const LEASE_TIME: Duration = Duration::from_secs(15);

/// It is renewed this often.
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// A holder that could not renew for this long has lost it: sooner than anybody else may take it.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// A waiting replica looks this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// One request.
const REQUEST: Duration = Duration::from_secs(4);

/// A replica that would lead.
#[derive(Clone)]
pub struct Election {
    client: Client,
    leases: Api<Lease>,
    replica: String,
}

/// The Lease is held.
pub struct Term {
    election: Election,
    lease: Lease,
    renewed: Instant,
}

/// Why the Lease is lost.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else has taken it.
    #[error("{0} holds the Lease {LEASE} now")]
    Taken(String),
    /// The API server did not answer for too long.
    #[error("the Lease {LEASE} could not be renewed for {RENEW_WITHIN:?}: {0}")]
    Unreachable(String),
}

impl Election {
    /// The election of a namespace. The replica's name is the host's, with something that no other has.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let replica = format!("{}_{:08x}", host.trim(), rand::random::<u32>());
        Self { leases: Api::namespaced(client.clone(), namespace), client, replica }
    }

    /// Waits until this replica leads.
    pub async fn win(self) -> Term {
        // Whose Lease it was, as of which renewal, and since when that is known here: clocks of other hosts are not trusted.
        let mut seen: Option<(Option<String>, Option<MicroTime>, Instant)> = None;
        loop {
            match self.look(&mut seen).await {
                Ok(Some(lease)) => {
                    info!(replica = %self.replica, "leading");
                    return Term { election: self, lease, renewed: Instant::now() };
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "the Lease {LEASE} cannot be looked at"),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn look(
        &self,
        seen: &mut Option<(Option<String>, Option<MicroTime>, Instant)>,
    ) -> Result<Option<Lease>, String> {
        let lease = self.request(self.leases.get_opt(LEASE)).await?;
        let Some(lease) = lease else {
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(0, true)) };
            return self.request(self.leases.create(&parameters(), &lease)).await.map(Some);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        if holder.as_ref().is_some_and(|holder| *holder != self.replica) {
            let same = |(before, renewal, _): &&mut (_, _, _)| *before == holder && *renewal == spec.renew_time;
            let since = match seen.as_mut().filter(same) {
                Some((_, _, since)) => *since,
                None => {
                    debug!(holder, "another replica leads");
                    *seen = Some((holder, spec.renew_time, Instant::now()));
                    return Ok(None);
                }
            };
            let time = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            if since.elapsed() < time.map_or(LEASE_TIME, Duration::from_secs) {
                return Ok(None);
            }
        }
        let taken = Lease { spec: Some(self.spec(spec.lease_transitions.unwrap_or(0) + 1, true)), ..lease };
        // The object's version goes with it: of two that take it, one is refused.
        self.request(self.leases.replace(LEASE, &parameters(), &taken)).await.map(Some)
    }

    fn spec(&self, transitions: i32, acquired: bool) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.replica.clone()),
            lease_duration_seconds: i32::try_from(LEASE_TIME.as_secs()).ok(),
            acquire_time: acquired.then_some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn request<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
        match timeout(REQUEST, request).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {REQUEST:?}")),
        }
    }
}

impl Term {
    /// A client of the API server.
    #[must_use]
    pub fn client(&self) -> Client {
        self.election.client.clone()
    }

    /// This replica's name.
    #[must_use]
    pub fn replica(&self) -> &str {
        &self.election.replica
    }

    /// Renews the Lease until it is lost.
    pub async fn hold(&mut self) -> Lost {
        loop {
            sleep(RENEW_EVERY).await;
            if let Err(error) = self.renew().await {
                warn!(%error, "the Lease {LEASE} is not renewed");
                if let Some(holder) = self.taken_by().await {
                    return Lost::Taken(holder);
                }
                if self.renewed.elapsed() > RENEW_WITHIN {
                    return Lost::Unreachable(error);
                }
            }
        }
    }

    /// Gives the Lease back, so that the next replica need not wait for its end.
    pub async fn release(mut self) {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = None;
            spec.renew_time = None;
            spec.acquire_time = None;
        }
        if let Err(error) = self.election.request(self.election.leases.replace(LEASE, &parameters(), &self.lease)).await
        {
            debug!(error, "the Lease {LEASE} is not given back");
        }
    }

    async fn renew(&mut self) -> Result<(), String> {
        let mut lease = self.lease.clone();
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let sent = Instant::now();
        let renewed = self.election.request(self.election.leases.replace(LEASE, &parameters(), &lease)).await;
        self.lease = renewed?;
        self.renewed = sent;
        Ok(())
    }

    /// Who else holds it; an answer that was lost on its way is made up for.
    async fn taken_by(&mut self) -> Option<String> {
        let lease = self.election.request(self.election.leases.get(LEASE)).await.ok()?;
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        if holder == self.election.replica {
            self.lease = lease;
            return None;
        }
        Some(if holder.is_empty() { "nobody".to_owned() } else { holder })
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}
