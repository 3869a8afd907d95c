//! What became of FailoverPolicies and AccessPolicies: their condition `Accepted`.
//!
//! A policy that cannot be used is `Invalid`; of several FailoverPolicies for the same import, or for all of a namespace,
//! the oldest applies and the others are `Overridden`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use federation_resources::isthmus::{AccessPolicy, FailoverPolicy};
use federation_resources::pruned;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Event, watcher};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;
use tracing::debug;

use super::{FIELD_MANAGER, watching};

/// The condition.
const ACCEPTED: &str = "Accepted";

/// One request.
const REQUEST: Duration = Duration::from_secs(10);

/// After a failure.
const AGAIN: Duration = Duration::from_secs(10);

/// A kind of policy.
trait Policy:
    kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send
{
    /// As they are there.
    fn conditions(&self) -> &[Condition];
    /// Why it cannot be used.
    fn refusal(&self) -> Option<String>;
    /// What only one policy of a namespace applies to; `None`: all apply.
    fn target(&self) -> Option<&str>;
}

impl Policy for FailoverPolicy {
    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }

    fn refusal(&self) -> Option<String> {
        pruned::FailoverPolicy::try_from(self).err().map(|error| error.to_string())
    }

    fn target(&self) -> Option<&str> {
        Some(self.spec.service.as_deref().unwrap_or_default())
    }
}

impl Policy for AccessPolicy {
    fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }

    fn refusal(&self) -> Option<String> {
        pruned::AccessPolicy::try_from(self).err().map(|error| error.to_string())
    }

    fn target(&self) -> Option<&str> {
        None
    }
}

/// Writes the conditions for ever.
pub async fn tell_policies(client: Client) {
    tokio::join!(tell::<FailoverPolicy>(client.clone()), tell::<AccessPolicy>(client));
}

type Policies<K> = BTreeMap<(String, String), K>;

async fn tell<K: Policy + 'static>(client: Client) {
    let mut events = pin!(watcher(Api::<K>::all(client.clone()), watching()).default_backoff());
    let (mut policies, mut listing) = (Policies::<K>::new(), None);
    let mut failed = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Init)) => listing = Some(Policies::new()),
                Some(Ok(Event::InitApply(policy))) => {
                    listing.get_or_insert_default().insert(key(&policy), policy);
                }
                Some(Ok(Event::InitDone)) => policies = listing.take().unwrap_or_default(),
                Some(Ok(Event::Apply(policy))) => {
                    policies.insert(key(&policy), policy);
                }
                Some(Ok(Event::Delete(policy))) => {
                    policies.remove(&key(&policy));
                }
                Some(Err(error)) => debug!(%error, "a watch of policies is interrupted"),
                None => return,
            },
            () = tokio::time::sleep(AGAIN), if failed => {}
        }
        if listing.is_none() {
            failed = !write(&client, &mut policies).await;
        }
    }
}

fn key<K: Policy>(policy: &K) -> (String, String) {
    (policy.namespace().unwrap_or_default(), policy.name_any())
}

/// Writes what differs; whether everything is written.
async fn write<K: Policy>(client: &Client, policies: &mut Policies<K>) -> bool {
    let differing: Vec<_> =
        policies.values().filter_map(|policy| Some((key(policy), verdict(policy, policies)?))).collect();
    let mut all = true;
    for ((namespace, name), condition) in differing {
        let api: Api<K> = Api::namespaced(client.clone(), &namespace);
        let body = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name},
            "status": {"conditions": [condition]},
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match timeout(REQUEST, api.patch_status(&name, &parameters, &Patch::Apply(&body))).await {
            Ok(Ok(applied)) => {
                policies.insert((namespace, name), applied);
            }
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {}
            Ok(Err(error)) => {
                debug!(%error, policy = %format!("{namespace}/{name}"), "a policy's condition is not written");
                all = false;
            }
            Err(_) => all = false,
        }
    }
    all
}

/// The condition of a policy, if it is not there already.
fn verdict<K: Policy>(policy: &K, all: &Policies<K>) -> Option<Condition> {
    let winner = policy.target().and_then(|target| {
        let rivals = all.values().filter(|it| it.namespace() == policy.namespace() && it.target() == Some(target));
        rivals.filter(|it| it.refusal().is_none()).min_by_key(|it| (it.creation_timestamp(), it.name_any()))
    });
    let (status, reason, message) = match (policy.refusal(), winner) {
        (Some(why), _) => ("False", "Invalid", why),
        (None, Some(winner)) if winner.name_any() != policy.name_any() => {
            ("False", "Overridden", format!("{} applies, which is older", winner.name_any()))
        }
        (None, _) => ("True", "Accepted", "it applies".to_owned()),
    };
    let known = policy.conditions().iter().find(|condition| condition.type_ == ACCEPTED);
    let generation = policy.meta().generation;
    let same = |known: &&Condition| known.status == status && known.reason == reason && known.message == message;
    if known.is_some_and(|known| same(&known) && known.observed_generation == generation) {
        return None;
    }
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    let since = known.filter(|known| known.status == status).map(|known| known.last_transition_time.clone());
    Some(Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: since.unwrap_or(Time(now)),
        observed_generation: generation,
    })
}
