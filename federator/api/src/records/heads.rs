//! Heads: a cluster's own word on which of its records are live, so that withholding one is noticed.

use std::collections::BTreeSet;
use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use federation::{Namespace, RecordKey};

use crate::convert::ConvertError;
use crate::record::v1 as wire;

/// Namespaces with exports in one cluster: a bound on a heads record.
const MAX_HEADS: usize = 10_000;

/// What one digest covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeadScope {
    /// Exports and slices of a namespace.
    Namespace(Namespace),
    /// The rest: the gateways.
    Cluster,
}

impl HeadScope {
    /// The scope of a record; the bundle and the membership (they travel another way) and the heads themselves have none.
    #[must_use]
    pub fn of(key: &RecordKey) -> Option<Self> {
        match key {
            RecordKey::Export(service) | RecordKey::Slice(service, _) => {
                Some(Self::Namespace(service.namespace.clone()))
            }
            RecordKey::Gateways => Some(Self::Cluster),
            RecordKey::Bundle | RecordKey::Heads | RecordKey::Membership => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("ns/") {
            Some(namespace) => namespace.parse().ok().map(Self::Namespace),
            None => (text == "cluster").then_some(Self::Cluster),
        }
    }
}

impl fmt::Display for HeadScope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(namespace) => write!(formatter, "ns/{namespace}"),
            Self::Cluster => formatter.write_str("cluster"),
        }
    }
}

/// The live records of one scope, in a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which records.
    pub scope: HeadScope,
    /// How many.
    pub count: u32,
    /// SHA-256 over `<key>\0<sequence as 8 bytes, big endian>` of each, keys in byte order.
    pub digest: [u8; 32],
}

impl Head {
    /// The head of these live records; they may come in any order.
    #[must_use]
    pub fn of<'a>(scope: HeadScope, records: impl IntoIterator<Item = (&'a RecordKey, u64)>) -> Self {
        let mut lines: Vec<_> = records.into_iter().map(|(key, sequence)| (key.to_string(), sequence)).collect();
        lines.sort_unstable();
        let mut digest = Context::new(&SHA256);
        for (key, sequence) in &lines {
            digest.update(key.as_bytes());
            digest.update(&[0]);
            digest.update(&sequence.to_be_bytes());
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.finish().as_ref());
        Self { scope, count: u32::try_from(lines.len()).unwrap_or(u32::MAX), digest: bytes }
    }

    /// Scopes of a later version are skipped.
    pub(crate) fn list_from_wire(heads: wire::Heads) -> Result<Vec<Self>, ConvertError> {
        crate::convert::at_most("heads.heads", &heads.heads, MAX_HEADS)?;
        let mut seen = BTreeSet::new();
        let mut list = Vec::new();
        for (index, head) in heads.heads.into_iter().enumerate() {
            let Some(scope) = HeadScope::parse(&head.scope) else { continue };
            let field = |name: &str| format!("heads.heads[{index}].{name}");
            if !seen.insert(scope.clone()) {
                return Err(ConvertError::new(field("scope"), format!("{scope} is there twice")));
            }
            let digest = head.digest.as_slice().try_into();
            let digest = digest.map_err(|_| ConvertError::new(field("digest"), "is not 32 bytes long"))?;
            list.push(Self { scope, count: head.count, digest });
        }
        Ok(list)
    }
}

impl From<&Head> for wire::Head {
    fn from(head: &Head) -> Self {
        Self { scope: head.scope.to_string(), count: head.count, digest: head.digest.to_vec() }
    }
}
