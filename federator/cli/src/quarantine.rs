//! `isthmus quarantine`, `release` and `evict`: the next deny-list, signed here, put there, and waited for everywhere.

use std::time::{Duration, Instant, SystemTime};

use federation::ClusterName;
use federation_api::client::trust::{list_watchers, operations};
use federation_api::record::v1::Signed;
use federation_api::trust::v1::Watcher;
use federation_api::verify::{DenyList, verify_deny_list, verify_member};
use prost::Message as _;
use serde::Serialize;
use spiffe_identity::SpiffeId;
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::arguments::{Evict, ShutOut, Target};
use crate::failure::Failure;
use crate::operator::{OperatorDirectory, unusable};
use crate::output::{Output, note};
use crate::time::brief;

/// Between two looks at who has acknowledged.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The last deny-list that was signed here: a service that has gone back to an older one, or that says it took none, must not
/// make us sign another one of the same epoch.
const LAST_SIGNED: &str = "deny-list.signed";

/// `-o json` of all three.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    /// What was done, for example "quarantined east".
    done: String,
    /// The deny-list's.
    epoch: u64,
    /// From the request until everybody had acknowledged, or until it was given up.
    milliseconds: u64,
    /// Watchers (control-planes, federators) and proxies that have acknowledged.
    watchers: usize,
    proxies: u64,
    /// Who has not; empty with `--no-wait`.
    pending: Vec<String>,
}

/// Shuts a cluster or an identity out.
pub(crate) async fn quarantine(arguments: &ShutOut, output: &Output) -> Result<(), Failure> {
    let directory = OperatorDirectory::open(&arguments.wait.service.operator)?;
    if let Target::Identity(id) = &arguments.target
        && directory.operator()?.as_ref() == Some(id)
    {
        return Err(Failure::Usage(format!("{id} is yourself: nobody could release you")));
    }
    let change = |list: &mut DenyList| match &arguments.target {
        Target::Cluster(cluster) => list.clusters.insert(cluster.clone()),
        Target::Identity(id) => list.spiffe_ids.insert(id.to_string()),
    };
    let operation = Operation { directory, done: format!("quarantined {}", arguments.target) };
    let outcome = operation.run(change, &arguments.wait, output).await;
    if let Target::Cluster(cluster) = &arguments.target {
        warn_of_stranger(&OperatorDirectory::open(&arguments.wait.service.operator)?, cluster).await;
    }
    outcome
}

/// A misspelt name shuts out nobody: said after the deed, which must not wait for it.
async fn warn_of_stranger(directory: &OperatorDirectory, cluster: &ClusterName) {
    if let Err(Failure::Usage(_)) = present_generation(directory, cluster).await {
        note(&format!("warning: no member is called {cluster}; should one join by that name, it is shut out"));
    }
}

/// Lets it in again.
pub(crate) async fn release(arguments: &ShutOut, output: &Output) -> Result<(), Failure> {
    let directory = OperatorDirectory::open(&arguments.wait.service.operator)?;
    let change = |list: &mut DenyList| match &arguments.target {
        Target::Cluster(cluster) => list.clusters.remove(cluster),
        Target::Identity(id) => list.spiffe_ids.remove(&id.to_string()),
    };
    let operation = Operation { directory, done: format!("released {}", arguments.target) };
    operation.run(change, &arguments.wait, output).await
}

/// Ends a cluster's membership for ever.
pub(crate) async fn evict(arguments: &Evict, output: &Output) -> Result<(), Failure> {
    let directory = OperatorDirectory::open(&arguments.wait.service.operator)?;
    let generation = match arguments.generation {
        Some(generation) => generation,
        None => present_generation(&directory, &arguments.cluster).await?,
    };
    let change = |list: &mut DenyList| {
        let through = list.evictions.entry(arguments.cluster.clone()).or_default();
        let further = generation > *through;
        *through = generation.max(*through);
        further
    };
    let operation =
        Operation { directory, done: format!("evicted {} through generation {generation}", arguments.cluster) };
    operation.run(change, &arguments.wait, output).await
}

async fn present_generation(directory: &OperatorDirectory, cluster: &ClusterName) -> Result<u64, Failure> {
    let members = operations::list_members(directory.channel()?).await.map_err(|status| directory.failed(status))?;
    let root = directory.membership_root_public()?;
    let verified = members
        .iter()
        .filter_map(|it| it.member.as_ref())
        .filter_map(|member| verify_member(&root, &directory.file.federation, member, None).ok());
    let generation = verified.filter(|member| member.cluster() == cluster).map(|member| member.generation()).max();
    generation.ok_or_else(|| {
        Failure::Usage(format!("cluster {cluster} is no member; --generation evicts one that the trust-bundle hides"))
    })
}

struct Operation {
    directory: OperatorDirectory,
    done: String,
}

impl Operation {
    /// Signs the next deny-list, puts it, and waits until everybody has applied it.
    async fn run(
        self,
        change: impl FnOnce(&mut DenyList) -> bool,
        wait: &crate::arguments::Acknowledged,
        output: &Output,
    ) -> Result<(), Failure> {
        let root = self.directory.membership_root()?;
        let channel = self.directory.channel()?;
        let started = Instant::now();
        let mut list = self.in_force(&channel).await?;
        if !change(&mut list) {
            note(&format!("nothing to change: {} already", self.done));
        }
        list.epoch += 1;
        list.issued = SystemTime::now();
        let signed = root.deny(&list.to_wire());
        // Before anybody sees it: whatever becomes of the call, no other list is signed for this epoch.
        self.directory.write(LAST_SIGNED, signed.encode_to_vec(), 0o644)?;
        let epoch = operations::put_deny_list(channel.clone(), signed).await;
        let epoch = epoch.map_err(|status| self.directory.failed(status))?;
        let mut seen = Acknowledgements::default();
        if !wait.no_wait {
            seen = self.acknowledged(&channel, epoch, started + wait.timeout).await?;
        }
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Acknowledgements { watchers, proxies, pending } = seen;
        let outcome =
            Outcome { done: self.done, epoch: list.epoch, milliseconds, watchers, proxies, pending: pending.clone() };
        output.show(&outcome, |_| describe(&outcome, wait.no_wait))?;
        if pending.is_empty() { Ok(()) } else { Err(Failure::Unacknowledged { what: outcome.done, pending }) }
    }

    /// The newest deny-list that can be known of: what the service says, unless more was signed here.
    async fn in_force(&self, channel: &Channel) -> Result<DenyList, Failure> {
        let federation = &self.directory.file.federation;
        let public = self.directory.membership_root()?.public();
        let told =
            operations::fetch_deny_list(channel.clone()).await.map_err(|status| self.directory.failed(status))?;
        let told = match told {
            Some(signed) => verify_deny_list(&public, federation, &signed).map_err(|error| {
                Failure::RefusedByTrustBundle { reason: format!("its deny-list is not believed: {error}") }
            })?,
            None => DenyList::empty(federation.clone()),
        };
        let path = self.directory.join(LAST_SIGNED);
        let Ok(bytes) = std::fs::read(&path) else { return Ok(told) };
        let signed = Signed::decode(bytes.as_slice()).map_err(|error| unusable(&path, &error))?;
        let own = verify_deny_list(&public, federation, &signed).map_err(|error| unusable(&path, &error))?;
        if own.epoch > told.epoch {
            let (own, told) = (own.epoch, told.epoch);
            note(&format!(
                "warning: the trust-bundle has deny-list {told}, but {own} was signed here: going on from that"
            ));
        }
        Ok(if own.epoch > told.epoch { own } else { told })
    }

    async fn acknowledged(
        &self,
        channel: &Channel,
        epoch: u64,
        deadline: Instant,
    ) -> Result<Acknowledgements, Failure> {
        loop {
            let answer = list_watchers(channel.clone()).await.map_err(|status| self.directory.failed(status))?;
            let seen = Acknowledgements::of(&answer.watchers, epoch);
            if seen.pending.is_empty() || Instant::now() >= deadline {
                return self.with_absent(channel, seen).await;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// A member that nobody watches for has not heard of anything.
    async fn with_absent(&self, channel: &Channel, mut seen: Acknowledgements) -> Result<Acknowledgements, Failure> {
        let members =
            operations::list_members(channel.clone()).await.map_err(|status| self.directory.failed(status))?;
        let (root, federation) = (self.directory.membership_root_public()?, &self.directory.file.federation);
        for state in members.iter().filter(|state| !state.quarantined && state.watchers.is_empty()) {
            let verified = state.member.as_ref().and_then(|member| verify_member(&root, federation, member, None).ok());
            let name = verified.map_or_else(|| "a member".to_owned(), |member| format!("cluster {}", member.cluster()));
            seen.pending.push(format!("{name} (not connected)"));
        }
        Ok(seen)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Acknowledgements {
    watchers: usize,
    proxies: u64,
    pending: Vec<String>,
}

impl Acknowledgements {
    fn of(watchers: &[Watcher], epoch: u64) -> Self {
        let mut seen = Self::default();
        for watcher in watchers {
            let name = match watcher.replica.as_str() {
                "" => watcher.identity.clone(),
                replica => format!("{} ({replica})", watcher.identity),
            };
            if watcher.acknowledged < epoch {
                let why = if watcher.connected { "" } else { " (gone away)" };
                seen.pending.push(format!("{name}{why}"));
                continue;
            }
            seen.watchers += 1;
            seen.proxies += u64::from(watcher.connected_count.saturating_sub(watcher.pending_count));
            seen.pending.extend(watcher.pending_proxies.iter().map(|proxy| format!("{proxy} behind {name}")));
            let named = u32::try_from(watcher.pending_proxies.len()).unwrap_or(u32::MAX);
            match watcher.pending_count.saturating_sub(named) {
                0 => {}
                more => seen.pending.push(format!("{more} more proxies behind {name}")),
            }
        }
        seen
    }
}

fn describe(outcome: &Outcome, no_wait: bool) -> String {
    let Outcome { done, epoch, milliseconds, watchers, proxies, pending } = outcome;
    let mut text = format!("{done} by deny-list {epoch}\n");
    if no_wait {
        return text;
    }
    let took = brief(Duration::from_millis(*milliseconds));
    text.push_str(&format!("acknowledged by {watchers} watchers and {proxies} proxies after {took}\n"));
    for name in pending {
        text.push_str(&format!("not acknowledged: {}\n", crate::output::visible(name)));
    }
    text
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(cluster) => write!(formatter, "{cluster}"),
            Self::Identity(id) => write!(formatter, "{id}"),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("spiffe:") {
            return text.parse::<SpiffeId>().map(Self::Identity).map_err(|error| error.to_string());
        }
        text.parse().map(Self::Cluster).map_err(|error| format!("{error}; write a cluster's name or a spiffe:// ID"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(acknowledged: u64, pending: &[&str], pending_count: u32) -> Watcher {
        Watcher {
            identity: "spiffe://mesh.example/cluster/east/control-plane".to_owned(),
            acknowledged,
            pending_proxies: pending.iter().map(|name| (*name).to_owned()).collect(),
            pending_count,
            connected_count: 5,
            connected: true,
            ..Watcher::default()
        }
    }

    #[test]
    fn who_has_not_acknowledged_is_named() {
        let all = Acknowledgements::of(&[watcher(7, &[], 0), watcher(8, &[], 0)], 7);
        assert_eq!(all, Acknowledgements { watchers: 2, proxies: 10, pending: Vec::new() });
        let mut away = watcher(6, &[], 0);
        (away.connected, away.replica) = (false, "east-0".to_owned());
        let some = Acknowledgements::of(&[watcher(7, &["cart-7"], 3), watcher(6, &[], 0), away], 7);
        let east = "spiffe://mesh.example/cluster/east/control-plane";
        let expected = [
            format!("cart-7 behind {east}"),
            format!("2 more proxies behind {east}"),
            east.to_owned(),
            format!("{east} (east-0) (gone away)"),
        ];
        assert_eq!(some, Acknowledgements { watchers: 1, proxies: 2, pending: expected.to_vec() });
    }

    #[test]
    fn a_target_is_a_cluster_or_an_identity() {
        assert!(matches!("east".parse(), Ok(Target::Cluster(_))));
        assert!(matches!("spiffe://east.mesh.example/ns/a/sa/b".parse(), Ok(Target::Identity(_))));
        for wrong in ["East", "spiffe://", "https://east", ""] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong:?}");
        }
    }
}
