//! Whose records are believed: the members of the federation less those shut out, followed over `trust.v1`.

use std::collections::BTreeMap;
use std::sync::Arc;

use federation::{ClusterName, FederationDomain, RecordKey};
use federation_api::record::v1::{Member, Signed, Statement};
use federation_api::signing::PublicKey;
use federation_api::trust::v1::WatchResponse;
use federation_api::verify::{DenyList, VerifiedMember, verify_deny_list, verify_member};
use prost::Message;
use tracing::{error, info};

/// The verified members of one federation. Nothing that does not verify under the membership root is in it, whatever
/// trust-bundle says.
#[derive(Debug, Clone)]
pub struct Members {
    root: PublicKey,
    federation: FederationDomain,
    members: BTreeMap<ClusterName, Arc<VerifiedMember>>,
    /// What was verified, to be written down.
    sources: BTreeMap<ClusterName, Member>,
    deny_list: Option<(DenyList, Signed)>,
    /// The generation that left, and the statement by which it did.
    departures: BTreeMap<ClusterName, (u64, Signed)>,
}

impl Members {
    /// Nobody yet.
    #[must_use]
    pub fn new(root: PublicKey, federation: FederationDomain) -> Self {
        Self {
            root,
            federation,
            members: BTreeMap::new(),
            sources: BTreeMap::new(),
            deny_list: None,
            departures: BTreeMap::new(),
        }
    }

    /// A member that is not shut out.
    #[must_use]
    pub fn member(&self, cluster: &ClusterName) -> Option<Arc<VerifiedMember>> {
        self.members.get(cluster).filter(|member| !self.shut_out(member)).cloned()
    }

    /// Whether the deny-list names the cluster, or it has left.
    #[must_use]
    pub fn is_denied(&self, cluster: &ClusterName) -> bool {
        self.members.get(cluster).is_some_and(|member| self.shut_out(member))
    }

    fn shut_out(&self, member: &VerifiedMember) -> bool {
        self.quarantines(member.cluster()) || self.void(member.cluster(), member.generation())
    }

    fn quarantines(&self, cluster: &ClusterName) -> bool {
        self.deny_list.as_ref().is_some_and(|(list, _)| list.quarantines(cluster))
    }

    /// Whether records of this membership are to be deleted: it was evicted, or has left. Quarantine deletes nothing.
    #[must_use]
    pub fn void(&self, cluster: &ClusterName, generation: u64) -> bool {
        self.deny_list.as_ref().is_some_and(|(list, _)| list.evicts(cluster, generation))
            || self.departures.get(cluster).is_some_and(|(left, _)| generation <= *left)
    }

    /// The membership of a cluster, shut out or not: whose signature its stored records bear.
    #[must_use]
    pub fn known(&self, cluster: &ClusterName) -> Option<&Arc<VerifiedMember>> {
        self.members.get(cluster)
    }

    /// Everybody that is not shut out.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        self.members.values().filter(|member| !self.shut_out(member)).map(|member| member.cluster())
    }

    /// Takes what trust-bundle says, as far as it verifies; a membership of a lower generation replaces nothing.
    pub fn apply(&mut self, response: &WatchResponse) {
        for member in &response.members {
            match verify_member(&self.root, &self.federation, member, None) {
                Ok(verified) => self.take(verified, member),
                Err(error) => error!(%error, "trust-bundle named a member that does not verify: ignored"),
            }
        }
        for departure in &response.departures {
            if let Err(error) = self.take_departure(departure) {
                error!(error, "trust-bundle named a departure that does not verify: ignored");
            }
        }
        if let Some(signed) = &response.deny_list {
            self.take_deny_list(signed);
        }
    }

    /// A member that has left signed so itself.
    fn take_departure(&mut self, signed: &Signed) -> Result<(), String> {
        let named = Statement::decode(signed.message.clone()).map_err(|error| error.to_string())?;
        let cluster: ClusterName = named.cluster.parse().map_err(|error| format!("cluster: {error}"))?;
        let Some(member) = self.members.get(&cluster).filter(|member| member.generation() == named.generation) else {
            // A membership that is not known, or was replaced: there is nobody to let go.
            return Ok(());
        };
        let statement = member.verify(signed).map_err(|error| error.to_string())?;
        if statement.key != RecordKey::Membership {
            return Err(format!("it is about {}", statement.key));
        }
        info!(%cluster, generation = statement.generation, "member left");
        self.departures.insert(cluster, (statement.generation, signed.clone()));
        Ok(())
    }

    fn take(&mut self, verified: VerifiedMember, source: &Member) {
        let cluster = verified.cluster().clone();
        let known = self.members.get(&cluster);
        if known.is_some_and(|known| **known != verified && !verified.supersedes(known)) {
            error!(%cluster, generation = verified.generation(), "trust-bundle went back to an older membership, or to other keys of the one that is known: ignored");
            return;
        }
        info!(%cluster, generation = verified.generation(), "member");
        self.sources.insert(cluster.clone(), source.clone());
        self.members.insert(cluster, Arc::new(verified));
    }

    fn take_deny_list(&mut self, signed: &Signed) {
        let list = match verify_deny_list(&self.root, &self.federation, signed) {
            Ok(list) => list,
            Err(error) => return error!(%error, "trust-bundle gave a deny-list that does not verify: ignored"),
        };
        if let Some(Err(error)) = self.deny_list.as_ref().map(|(known, _)| list.follows(known)) {
            return error!(%error, "trust-bundle gave a deny-list that does not follow the known one: ignored");
        }
        self.deny_list = Some((list, signed.clone()));
    }

    /// The whole of it, as it is written to disk and read back through [`apply`](Self::apply).
    #[must_use]
    pub fn to_response(&self) -> WatchResponse {
        WatchResponse {
            full: true,
            members: self.sources.values().cloned().collect(),
            deny_list: self.deny_list.as_ref().map(|(_, signed)| signed.clone()),
            departures: self.departures.values().map(|(_, signed)| signed.clone()).collect(),
            ..WatchResponse::default()
        }
    }
}
