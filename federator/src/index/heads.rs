//! When a cluster's heads last changed what they say, scope by scope.

use std::collections::{BTreeSet, HashMap};

use federation::Namespace;
use federation_api::record::v1::Head;
use federation_store::Revision;

/// The scope of what belongs to no namespace.
const CLUSTER: &str = "cluster";
/// Before a namespace's name.
const NAMESPACE: &str = "ns/";

/// What heads say about one scope, and since which revision.
#[derive(Debug)]
struct Said {
    count: u32,
    digest: Box<[u8]>,
    since: Revision,
}

/// The scopes of one cluster's heads.
#[derive(Debug, Default)]
pub(super) struct HeadScopes {
    generation: u64,
    scopes: HashMap<Box<str>, Said>,
    /// When something last changed that concerns everybody: another generation, or a scope that is gone.
    common: Revision,
    /// The heads were deleted, and no newer ones followed.
    pub(super) gone: bool,
}

impl HeadScopes {
    pub(super) fn replace(&mut self, generation: u64, revision: Revision, heads: Vec<Head>) {
        self.gone = false;
        let known = heads.iter().filter(|head| self.scopes.contains_key(head.scope.as_str())).count();
        if generation != self.generation || known < self.scopes.len() {
            self.common = revision;
        }
        self.generation = generation;
        let mut scopes = HashMap::with_capacity(heads.len());
        for head in heads {
            let same = self.scopes.remove(head.scope.as_str());
            let same = same.filter(|said| said.count == head.count && *said.digest == *head.digest);
            let since = same.map_or(revision, |said| said.since);
            scopes.insert(head.scope.into(), Said { count: head.count, digest: head.digest.into(), since });
        }
        self.scopes = scopes;
    }

    pub(super) fn matter(&self, cursor: Revision, interest: &BTreeSet<Namespace>) -> bool {
        self.common > cursor
            || self.scopes.iter().any(|(scope, said)| {
                said.since > cursor
                    && (&**scope == CLUSTER
                        || scope.strip_prefix(NAMESPACE).is_some_and(|namespace| interest.contains(namespace)))
            })
    }
}
