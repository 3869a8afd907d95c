//! What a member may write: verified, fenced, in one transaction a record.

use std::sync::Arc;

use federation::{ClusterName, RecordKey};
use federation_api::federation::v1::refusal::Reason;
use federation_api::federation::v1::{PublishResult, Refusal};
use federation_api::payload::Payload;
use federation_api::record::v1::{Signed, Statement};
use federation_api::verify::{RecordError, VerifiedMember};
use federation_store::{Committed, Revision, Store, StoreError, Transaction, layout};
use prost::Message;

use crate::cache::{Cache, Record, store_key};
use crate::config::Quota;

/// A session's right to publish: the key `epochs/<cluster>` as it was when the session took it.
#[derive(Debug, Clone)]
pub struct Epoch {
    key: String,
    modified: Revision,
    /// The number, growing with every session that asked to publish.
    pub number: u64,
}

impl Epoch {
    /// Takes the next epoch of a cluster: older sessions of it can publish no more.
    ///
    /// # Errors
    /// The store's.
    pub async fn take<S: Store>(store: &S, cluster: &ClusterName) -> Result<Self, StoreError> {
        let key = layout::epoch(cluster.as_str());
        loop {
            let current = store.get(&key).await?;
            let number =
                current.as_ref().and_then(|entry| entry.value.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes);
            let transaction = Transaction::new()
                .expecting(&key, current.map_or(0, |entry| entry.modified))
                .put(&key, (number + 1).to_be_bytes().to_vec());
            if let Committed::Done(modified) = store.commit(transaction).await? {
                return Ok(Self { key, modified, number: number + 1 });
            }
        }
    }
}

/// Why a record is not stored.
#[derive(Debug)]
enum Unstored {
    Refused(Reason, String),
    Store(StoreError),
}

impl From<(Reason, String)> for Unstored {
    fn from((reason, detail): (Reason, String)) -> Self {
        Self::Refused(reason, detail)
    }
}

impl From<StoreError> for Unstored {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Writes records for members.
#[derive(Debug, Clone)]
pub struct Publisher<S> {
    store: S,
    cache: Cache,
    quota: Quota,
}

impl<S: Store> Publisher<S> {
    /// Writes to `store`, which `cache` follows.
    pub fn new(store: S, cache: Cache, quota: Quota) -> Self {
        Self { store, cache, quota }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The limits that sessions announce.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Stores one record of `member`, or says why not.
    ///
    /// # Errors
    /// The store's: whether the record is there is unknown, and the session must be opened again.
    pub async fn publish(
        &self,
        member: &VerifiedMember,
        epoch: Option<&Epoch>,
        signed: Signed,
    ) -> Result<PublishResult, StoreError> {
        // For the answer only: nothing of it is believed before it is verified.
        let named = Statement::decode(signed.message.clone()).unwrap_or_default();
        let mut result = PublishResult { key: named.key, sequence: named.sequence, ..PublishResult::default() };
        match self.store_record(member, epoch, signed).await {
            Ok(revision) => result.revision = revision,
            Err(Unstored::Refused(reason, detail)) => {
                result.refusal = Some(Refusal { reason: reason.into(), detail });
            }
            Err(Unstored::Store(error)) => return Err(error),
        }
        Ok(result)
    }

    async fn store_record(
        &self,
        member: &VerifiedMember,
        epoch: Option<&Epoch>,
        signed: Signed,
    ) -> Result<Revision, Unstored> {
        let epoch = epoch.ok_or_else(|| (Reason::NotPublisher, "this session did not ask to publish".to_owned()))?;
        if signed.message.len() > self.quota.record_bytes {
            let text = format!("{} bytes, {} are allowed", signed.message.len(), self.quota.record_bytes);
            return Err((Reason::Quota, text).into());
        }
        let statement = member.verify(&signed).map_err(|error| refusal(&error))?;
        let key = store_key(member.cluster(), &statement.key)
            .ok_or_else(|| (Reason::Malformed, format!("{} is not kept by the federator", statement.key)))?;
        let value = signed.encode_to_vec();
        loop {
            let current = self.cache.record(&key);
            if let Some(current) = &current {
                let offered = (statement.generation, statement.sequence);
                if let Some(same) = compare(current, offered, &signed)? {
                    return Ok(same);
                }
            }
            self.check_quota(member.cluster(), &statement.key, &statement.payload, current.as_ref())?;
            let transaction = Transaction::new()
                .expecting(&epoch.key, epoch.modified)
                .expecting(&key, current.as_ref().map_or(0, |record| record.revision))
                .put(&key, value.clone());
            match self.store.commit(transaction).await? {
                Committed::Done(revision) => return Ok(revision),
                Committed::Conflict { key } if key == epoch.key => {
                    return Err((Reason::NotPublisher, "another session of the cluster publishes".to_owned()).into());
                }
                Committed::Conflict { .. } => self.catch_up().await,
            }
        }
    }

    /// Waits for the cache to see what made a transaction fail.
    async fn catch_up(&self) {
        let mut changes = self.cache.changes();
        changes.mark_unchanged();
        let _ = tokio::time::timeout(CATCH_UP, changes.changed()).await;
    }

    fn check_quota(
        &self,
        cluster: &ClusterName,
        key: &RecordKey,
        payload: &Payload,
        current: Option<&Arc<Record>>,
    ) -> Result<(), (Reason, String)> {
        let counted =
            matches!(key, RecordKey::Export(_) | RecordKey::Slice(..)) && !matches!(payload, Payload::Withdrawal);
        let new = current.is_none_or(|record| record.withdrawn);
        if counted && new && self.cache.live_exports(cluster) >= self.quota.exports {
            return Err((Reason::Quota, format!("the cluster has {} exports, the most allowed", self.quota.exports)));
        }
        Ok(())
    }
}

/// How long a transaction that lost against another waits for the cache before it looks again.
const CATCH_UP: std::time::Duration = std::time::Duration::from_millis(20);

/// The revision of the stored record when it is the same one; an error when the offered one must not replace it.
fn compare(current: &Record, offered: (u64, u64), signed: &Signed) -> Result<Option<Revision>, (Reason, String)> {
    if current.order == offered && current.signed.message == signed.message {
        return Ok(Some(current.revision));
    }
    if current.order == offered {
        return Err((Reason::Equivocation, format!("sequence {} was used for other content", offered.1)));
    }
    if current.order > offered {
        return Err((
            Reason::Stale,
            format!("(generation, sequence) {:?} is stored, offered {offered:?}", current.order),
        ));
    }
    Ok(None)
}

fn refusal(error: &RecordError) -> (Reason, String) {
    let reason = match error {
        RecordError::NotDelegated(_) => Reason::NotDelegated,
        RecordError::Size(_)
        | RecordError::Decode
        | RecordError::Key(_)
        | RecordError::Disagreement { .. }
        | RecordError::Field(_) => Reason::Malformed,
        RecordError::Signature
        | RecordError::Federation(_)
        | RecordError::Cluster(_)
        | RecordError::Generation { .. }
        | RecordError::Sequence(_)
        | RecordError::TrustDomain(_) => Reason::NotYours,
    };
    (reason, error.to_string())
}
