//! One stored record, in few bytes: its signed value, and what is looked up in it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Memory};

use bytes::Bytes;
use federation::{ClusterName, Namespace, RecordKey};
use federation_api::record::v1::{Head, Signed, Statement, statement};
use federation_store::{Revision, layout};
use prost::Message;
use triomphe::ThinArc;

/// Why a stored value is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is no signed statement.
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
    /// It is about another key than the one it lies under.
    #[error("it is about {0}")]
    Elsewhere(String),
    /// Its key is none.
    #[error(transparent)]
    Key(#[from] federation::record::RecordKeyError),
    /// Its cluster is no name.
    #[error(transparent)]
    Cluster(#[from] federation::name::NameError),
    /// The mark of what was collected is no revision.
    #[error("it is no revision")]
    Collected,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An exported service.
    Export,
    /// Endpoints of a headless service.
    Slice,
    /// The gateways.
    Gateways,
    /// The heads.
    Heads,
}

/// Who speaks, shared by all records of a membership.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Speaker {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its membership.
    pub generation: u64,
}

/// A stored record, of which there are a hundred thousand: one allocation of 56 bytes and those of its value. Clones share it.
#[derive(Clone, Debug)]
pub struct Record(ThinArc<Facts, u8>);

/// What is looked up in a record, in front of its value: the signed envelope as it is stored.
#[derive(Debug)]
struct Facts {
    revision: Revision,
    sequence: u64,
    speaker: Arc<Speaker>,
    /// Boxed twice so that a record holds one pointer: names are shared, records are many.
    namespace: Option<Arc<Namespace>>,
    /// Where the record's key lies in the value.
    key_start: u32,
    key_length: u16,
    withdrawn: bool,
    replaced: AtomicBool,
}

/// The count of clones and the length of the value are before them.
const _: () = assert!(size_of::<Facts>() + 2 * size_of::<usize>() == 56);

impl Record {
    fn facts(&self) -> &Facts {
        &self.0.header.header
    }

    /// The revision that wrote it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.facts().revision
    }

    /// The cluster that speaks.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.facts().speaker.cluster
    }

    /// Its order among the records of its key: (generation, sequence).
    #[must_use]
    pub fn position(&self) -> (u64, u64) {
        (self.facts().speaker.generation, self.facts().sequence)
    }

    /// The record's key, as text.
    #[must_use]
    pub fn key(&self) -> &str {
        std::str::from_utf8(self.key_bytes()).unwrap_or_default()
    }

    fn key_bytes(&self) -> &[u8] {
        let (start, length) = (self.facts().key_start as usize, usize::from(self.facts().key_length));
        &self.value()[start..start + length]
    }

    /// The namespace, if it belongs to one.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        self.facts().namespace.as_deref()
    }

    /// What it is about.
    #[must_use]
    pub fn kind(&self) -> Kind {
        // No two kinds of keys begin alike, and a record with another key is not taken.
        match self.key_bytes().first() {
            Some(b'e') => Kind::Export,
            Some(b's') => Kind::Slice,
            Some(b'g') => Kind::Gateways,
            _ => Kind::Heads,
        }
    }

    /// It says that the key has no value any more.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.facts().withdrawn
    }

    /// It counts against the quota of exports.
    #[must_use]
    pub fn is_live_export(&self) -> bool {
        !self.is_withdrawn() && matches!(self.kind(), Kind::Export | Kind::Slice)
    }

    /// Bytes of the stored envelope.
    #[must_use]
    pub fn size(&self) -> usize {
        self.value().len()
    }

    /// The envelope, as its cluster signed it.
    #[must_use]
    pub fn signed(&self) -> Signed {
        Signed::decode(Bytes::copy_from_slice(self.value())).unwrap_or_default()
    }

    /// The stored value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.0.slice
    }

    /// Where it lies in the store.
    #[must_use]
    pub fn store_key(&self) -> String {
        self.key().parse().ok().and_then(|key| store_key(self.cluster(), &key)).unwrap_or_default()
    }

    pub(super) fn namespace_text(&self) -> &str {
        self.namespace().map_or("", Namespace::as_str)
    }

    pub(super) fn replace(&self) {
        self.facts().replaced.store(true, Memory::Relaxed);
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.facts().replaced.load(Memory::Relaxed)
    }
}

/// Where a cluster's record of a key lies in the store; `None` for what is not the federator's to keep.
#[must_use]
pub fn store_key(cluster: &ClusterName, key: &RecordKey) -> Option<String> {
    let cluster = cluster.as_str();
    match key {
        RecordKey::Export(service) => Some(layout::export(service.namespace.as_str(), service.name.as_str(), cluster)),
        RecordKey::Slice(service, slice) => {
            Some(layout::slice(service.namespace.as_str(), service.name.as_str(), cluster, slice))
        }
        RecordKey::Gateways => Some(layout::gateway(cluster)),
        RecordKey::Heads => Some(layout::heads(cluster)),
        _ => None,
    }
}

/// The cluster and the record's key of a key in the store; `None` for keys that hold no records.
#[must_use]
pub fn parse_store_key(key: &str) -> Option<(&str, String)> {
    match key.split('/').collect::<Vec<_>>().as_slice() {
        ["exports", namespace, service, cluster] => Some((cluster, format!("exports/{namespace}/{service}"))),
        ["slices", namespace, service, cluster, slice] => {
            Some((cluster, format!("slices/{namespace}/{service}/{slice}")))
        }
        ["gateways", cluster] => Some((cluster, "gateways".to_owned())),
        ["heads", cluster] => Some((cluster, "heads".to_owned())),
        _ => None,
    }
}

/// Names that many records share.
#[derive(Debug, Default)]
pub(super) struct Names {
    speakers: HashSet<Arc<Speaker>>,
    namespaces: HashSet<Arc<Namespace>>,
}

impl Names {
    /// Reads a stored value, and what it says when it is heads.
    pub(super) fn read(
        &mut self,
        revision: Revision,
        value: &[u8],
        cluster: &str,
        name: &str,
    ) -> Result<(Record, Option<Vec<Head>>), Unreadable> {
        let signed = Signed::decode(value)?;
        let statement = Statement::decode(signed.message.as_ref())?;
        if statement.cluster != cluster || statement.key != name {
            return Err(Unreadable::Elsewhere(format!("{} of {}", statement.key, statement.cluster)));
        }
        let key: RecordKey = statement.key.parse()?;
        let known = matches!(key, RecordKey::Export(_) | RecordKey::Slice(..) | RecordKey::Gateways | RecordKey::Heads);
        if !known {
            return Err(Unreadable::Elsewhere(statement.key));
        }
        let speaker = Arc::new(Speaker { cluster: ClusterName::parse(cluster)?, generation: statement.generation });
        let speaker = shared(&mut self.speakers, speaker);
        let namespace = key.namespace().map(|namespace| shared(&mut self.namespaces, Arc::new(namespace.clone())));
        let place = value.windows(name.len()).position(|window| window == name.as_bytes());
        let place = place.and_then(|place| u32::try_from(place).ok());
        let place = place.zip(u16::try_from(name.len()).ok());
        let (key_start, key_length) = place.ok_or_else(|| Unreadable::Elsewhere(name.to_owned()))?;
        let heads = match &statement.payload {
            Some(statement::Payload::Heads(heads)) => Some(heads.heads.clone()),
            _ => None,
        };
        let facts = Facts {
            revision,
            sequence: statement.sequence,
            speaker,
            namespace,
            key_start,
            key_length,
            withdrawn: matches!(statement.payload, Some(statement::Payload::Withdrawal(_))),
            replaced: AtomicBool::new(false),
        };
        Ok((Record(ThinArc::from_header_and_slice(facts, value)), heads))
    }

    /// Forgets what no record shares any more.
    pub(super) fn sweep(&mut self) {
        self.speakers.retain(|name| Arc::strong_count(name) > 1);
        self.namespaces.retain(|name| Arc::strong_count(name) > 1);
    }
}

fn shared<T: Eq + std::hash::Hash>(names: &mut HashSet<Arc<T>>, name: Arc<T>) -> Arc<T> {
    if let Some(known) = names.get(&name) {
        return Arc::clone(known);
    }
    names.insert(Arc::clone(&name));
    name
}

/// The order of records: namespace, key, cluster.
pub(super) trait KeyView {
    fn place(&self) -> (&str, &str, &str);
}

/// A key that no record need have.
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    pub(super) key: &'a str,
    pub(super) cluster: &'a str,
}

impl<'a> Place<'a> {
    pub(super) fn of(cluster: &'a str, key: &'a str) -> Self {
        let mut parts = key.split('/');
        let namespace = match parts.next() {
            Some("exports" | "slices") => parts.next().unwrap_or_default(),
            _ => "",
        };
        Self { namespace, key, cluster }
    }
}

impl KeyView for Place<'_> {
    fn place(&self) -> (&str, &str, &str) {
        (self.namespace, self.key, self.cluster)
    }
}

impl KeyView for Record {
    fn place(&self) -> (&str, &str, &str) {
        (self.namespace_text(), self.key(), self.cluster().as_str())
    }
}

impl KeyView for ByKey {
    fn place(&self) -> (&str, &str, &str) {
        self.0.place()
    }
}

impl PartialEq for dyn KeyView + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn KeyView + '_ {}

impl PartialOrd for dyn KeyView + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn KeyView + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

/// A record in the order of its key.
#[derive(Debug)]
pub(super) struct ByKey(pub(super) Record);

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl<'a> Borrow<dyn KeyView + 'a> for ByKey {
    fn borrow(&self) -> &(dyn KeyView + 'a) {
        self
    }
}
