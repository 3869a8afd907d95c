//! Memberships, bundles and the deny-list, each verified.

use std::collections::{BTreeMap, HashSet};

use federation::{ClusterName, FederationDomain};
use federation_api::client::trust::TrustCursor;
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, Signed, Statement};
use federation_api::signing::PublicKey;
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{DenyList, RecordError, VerifiedMember, verify_deny_list, verify_member};
use prost::Message as _;
use spiffe_identity::{Bundle, root_keys};

/// Something of an update that was not believed; the rest was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct TrustRefusal {
    /// What was refused.
    pub what: String,
    /// Why.
    pub why: String,
}

#[derive(Clone, Debug)]
struct KnownMember {
    envelope: Member,
    verified: VerifiedMember,
}

#[derive(Clone, Debug)]
struct KnownBundle {
    envelope: Signed,
    position: (u64, u64),
    bundle: Bundle,
    /// Its roots' public keys.
    keys: HashSet<Vec<u8>>,
}

/// A membership that its member ended; kept so that nobody brings it back by saying an old word again.
#[derive(Clone, Debug)]
struct Departure {
    generation: u64,
    member: Member,
    statement: Signed,
}

/// Who is a member, which roots speak for each, and who is shut out.
#[derive(Clone, Debug)]
pub struct PeerTrust {
    federation: FederationDomain,
    root: Option<PublicKey>,
    members: BTreeMap<ClusterName, KnownMember>,
    bundles: BTreeMap<ClusterName, KnownBundle>,
    departed: BTreeMap<ClusterName, Departure>,
    deny_list: DenyList,
    deny_list_envelope: Option<Signed>,
    cursor: TrustCursor,
}

impl PeerTrust {
    pub(super) fn new(federation: FederationDomain) -> Self {
        Self {
            deny_list: DenyList::empty(federation.clone()),
            federation,
            root: None,
            members: BTreeMap::new(),
            bundles: BTreeMap::new(),
            departed: BTreeMap::new(),
            deny_list_envelope: None,
            cursor: TrustCursor::default(),
        }
    }

    /// Pins the membership root. What was believed under another one is forgotten.
    pub fn pin(&mut self, root: PublicKey) {
        if self.root != Some(root) {
            *self = Self { root: Some(root), ..Self::new(self.federation.clone()) };
        }
    }

    /// Takes one step of the trust state. What does not verify is left out and reported; nothing is taken away by being
    /// absent.
    pub fn apply(&mut self, update: &WatchResponse) -> Vec<TrustRefusal> {
        let Some(root) = self.root else {
            return vec![TrustRefusal {
                what: "the trust state".to_owned(),
                why: "no membership root is pinned".to_owned(),
            }];
        };
        let mut refusals = Vec::new();
        let mut note = |what: &str, outcome: Result<(), String>| {
            refusals.extend(outcome.err().map(|why| TrustRefusal { what: what.to_owned(), why }));
        };
        if let Some(signed) = &update.deny_list {
            note("deny-list", self.apply_deny_list(&root, signed));
        }
        for member in &update.members {
            note("member", self.apply_member(&root, member));
        }
        for statement in &update.departures {
            note("departure", self.apply_departure(statement));
        }
        for bundle in &update.bundles {
            note("bundle", self.apply_bundle(bundle));
        }
        self.cursor = update.cursor();
        refusals
    }

    fn apply_deny_list(&mut self, root: &PublicKey, signed: &Signed) -> Result<(), String> {
        let list = verify_deny_list(root, &self.federation, signed).map_err(|error| error.to_string())?;
        list.follows(&self.deny_list).map_err(|error| error.to_string())?;
        self.members.retain(|cluster, member| !list.evicts(cluster, member.verified.generation()));
        self.bundles.retain(|cluster, bundle| !list.evicts(cluster, bundle.position.0));
        self.deny_list = list;
        self.deny_list_envelope = Some(signed.clone());
        Ok(())
    }

    fn apply_member(&mut self, root: &PublicKey, member: &Member) -> Result<(), String> {
        let verified = verify_member(root, &self.federation, member, None).map_err(|error| error.to_string())?;
        let cluster = verified.cluster().clone();
        if self.deny_list.evicts(&cluster, verified.generation()) {
            return Err(format!("cluster {cluster}: generation {} was evicted", verified.generation()));
        }
        if self.departed.get(&cluster).is_some_and(|departure| departure.generation >= verified.generation()) {
            return Ok(());
        }
        match self.members.get(&cluster).map(|known| &known.verified) {
            Some(known) if known.supersedes(&verified) => {
                Err(format!("cluster {cluster}: a newer membership is known"))
            }
            Some(known) if *known != verified && !verified.supersedes(known) => {
                Err(format!("cluster {cluster}: other keys are known of generation {}", known.generation()))
            }
            _ => {
                self.members.insert(cluster, KnownMember { envelope: member.clone(), verified });
                Ok(())
            }
        }
    }

    fn apply_departure(&mut self, signed: &Signed) -> Result<(), String> {
        // Of somebody who was never known nothing has to be forgotten.
        let cluster = super::speaker(signed).ok_or("cannot be decoded")?;
        let Some(known) = self.members.get(&cluster) else { return Ok(()) };
        let about = |why: String| format!("cluster {cluster}: {why}");
        let statement = match known.verified.verify_departure(signed) {
            Ok(statement) => statement,
            // It ended a membership before the present one, made with other keys.
            Err(RecordError::Generation { .. } | RecordError::Signature) if ended_before(signed, known) => {
                return Ok(());
            }
            Err(error) => return Err(about(error.to_string())),
        };
        let generation = statement.generation;
        let (member, statement) = (known.envelope.clone(), signed.clone());
        self.bundles.remove(&cluster);
        self.members.remove(&cluster);
        self.departed.insert(cluster, Departure { generation, member, statement });
        Ok(())
    }

    /// Memberships that their members ended, with their generations.
    pub fn departures(&self) -> impl Iterator<Item = (&ClusterName, u64)> {
        self.departed.iter().map(|(cluster, departure)| (cluster, departure.generation))
    }

    fn apply_bundle(&mut self, signed: &Signed) -> Result<(), String> {
        let statement = Statement::decode(signed.message.as_ref()).map_err(|_| "cannot be decoded".to_owned())?;
        let cluster: ClusterName = statement.cluster.parse().map_err(|error| format!("cluster: {error}"))?;
        let about = |why: String| format!("cluster {cluster}: {why}");
        let member = self.members.get(&cluster).ok_or_else(|| about("no member".to_owned()))?;
        let statement = member.verified.verify(signed).map_err(|error| about(error.to_string()))?;
        let Payload::Bundle { trust_domain, jwks } = &statement.payload else {
            return Err(about("the record is no bundle".to_owned()));
        };
        let trust_domain = trust_domain.parse().map_err(|error| about(format!("trust domain: {error}")))?;
        let bundle = Bundle::from_jwks(trust_domain, jwks).map_err(|error| about(error.to_string()))?;
        let keys = root_keys(&bundle);
        if let Some(owner) = self.owner_of_any(&keys, &cluster) {
            return Err(about(format!("its bundle holds a root's key of cluster {owner}")));
        }
        let position = (statement.generation, statement.sequence);
        if let Some(known) = self.bundles.get(&cluster) {
            if position < known.position {
                return Err(about("a newer bundle is known".to_owned()));
            }
            if position.0 == known.position.0 && bundle.sequence < known.bundle.sequence {
                return Err(about(format!("its sequence goes back from {}", known.bundle.sequence)));
            }
        }
        self.bundles.insert(cluster, KnownBundle { envelope: signed.clone(), position, bundle, keys });
        Ok(())
    }

    /// Whose root has one of these keys, apart from `own`. A key that is a root's of two clusters could speak for both.
    fn owner_of_any(&self, keys: &HashSet<Vec<u8>>, own: &ClusterName) -> Option<&ClusterName> {
        let mut others = self.bundles.iter().filter(|(cluster, _)| *cluster != own);
        others.find(|(_, known)| !known.keys.is_disjoint(keys)).map(|(cluster, _)| cluster)
    }

    /// The whole state as one message, to be written down; the federation's own roots are the membership's.
    #[must_use]
    pub fn to_message(&self) -> WatchResponse {
        WatchResponse {
            incarnation: self.cursor.incarnation.clone(),
            epoch: self.cursor.epoch,
            full: true,
            members: {
                let departed = self.departed.values().map(|departure| departure.member.clone());
                departed.chain(self.members.values().map(|member| member.envelope.clone())).collect()
            },
            departures: self.departed.values().map(|departure| departure.statement.clone()).collect(),
            bundles: self.bundles.values().map(|bundle| bundle.envelope.clone()).collect(),
            deny_list: self.deny_list_envelope.clone(),
            ..WatchResponse::default()
        }
    }

    /// How far the trust state was applied.
    #[must_use]
    pub fn cursor(&self) -> &TrustCursor {
        &self.cursor
    }

    /// A member by name, shut out or not.
    #[must_use]
    pub fn member(&self, cluster: &ClusterName) -> Option<&VerifiedMember> {
        self.members.get(cluster).map(|member| &member.verified)
    }

    /// Members by name, shut out or not.
    pub fn members(&self) -> impl Iterator<Item = &ClusterName> {
        self.members.keys()
    }

    /// Whether it is a member and not shut out.
    #[must_use]
    pub fn believes(&self, cluster: &ClusterName) -> bool {
        self.members.contains_key(cluster) && !self.deny_list.quarantines(cluster)
    }

    /// A cluster's roots, if it is not shut out.
    #[must_use]
    pub fn bundle(&self, cluster: &ClusterName) -> Option<&Bundle> {
        self.bundles.get(cluster).filter(|_| self.believes(cluster)).map(|known| &known.bundle)
    }

    /// The roots that the federation has of the cluster itself, shut out or not.
    #[must_use]
    pub fn own_bundle(&self, own: &ClusterName) -> Option<&Bundle> {
        self.bundles.get(own).map(|known| &known.bundle)
    }

    /// The roots of every cluster that is not shut out.
    pub fn bundles(&self) -> impl Iterator<Item = (&ClusterName, &Bundle)> {
        self.bundles
            .iter()
            .filter(|(cluster, _)| self.believes(cluster))
            .map(|(cluster, known)| (cluster, &known.bundle))
    }

    /// Who is shut out.
    #[must_use]
    pub fn deny_list(&self) -> &DenyList {
        &self.deny_list
    }

    /// The deny-list as the operator signed it, if there ever was one.
    #[must_use]
    pub fn deny_list_envelope(&self) -> Option<&Signed> {
        self.deny_list_envelope.as_ref()
    }

    /// The membership root.
    #[must_use]
    pub fn root(&self) -> Option<&PublicKey> {
        self.root.as_ref()
    }
}

/// Whether a statement is about an older membership than the known one, as it says itself.
fn ended_before(signed: &Signed, known: &KnownMember) -> bool {
    Statement::decode(signed.message.as_ref()).is_ok_and(|said| said.generation < known.verified.generation())
}
