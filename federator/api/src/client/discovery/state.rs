//! What a proxy knows, wants and owes: pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use federation::MeshHost;

use crate::discovery::v1::resource::Resource as Kind;
use crate::discovery::v1::{
    Advertise, KnownResource, ProxyKind, Resource, Service, Subscribe, WatchAck, WatchResponse,
};

/// Services that one sidecar can subscribe.
pub const MAX_HOSTS: usize = 10_000;
/// Addresses that wait for an answer; beyond it the oldest is forgotten.
const MAX_LOOKUPS: usize = 1_024;
/// Bytes of a rejection's text.
const MAX_ERROR_BYTES: usize = 1_024;

/// More services were asked for than a sidecar can subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_HOSTS} services are subscribed, no more are possible")]
pub struct SubscriptionsFull;

/// An update on its way through the user.
#[derive(Debug)]
struct Pending {
    ticket: u64,
    stream: u64,
    revision: u64,
    resources: Vec<Arc<Resource>>,
    removed: Vec<String>,
}

#[derive(Debug)]
pub(super) struct State {
    kind: ProxyKind,
    applied: BTreeMap<String, Arc<Resource>>,
    /// Grows with every change of `applied`.
    version: u64,
    /// Bounded by the queue of events.
    pending: VecDeque<Pending>,
    tickets: u64,
    hosts: BTreeSet<String>,
    lookups: VecDeque<IpAddr>,
    pub(super) advertise: Option<Advertise>,
    stream: u64,
    /// What the current stream has been told, and what it is owed.
    told: Told,
    owed: Option<(u64, String)>,
}

#[derive(Debug, Default)]
struct Told {
    hosts: BTreeSet<String>,
    lookups: BTreeSet<IpAddr>,
    advertise: Option<Advertise>,
    revision: u64,
}

fn service_resource(host: &str) -> String {
    format!("service/{host}")
}

fn vips(service: &Service) -> impl Iterator<Item = IpAddr> {
    service.vips.iter().filter_map(|vip| vip.parse().ok())
}

impl State {
    pub(super) fn new(
        kind: ProxyKind,
        hosts: impl IntoIterator<Item = MeshHost>,
        advertise: Option<Advertise>,
    ) -> Self {
        Self {
            kind,
            applied: BTreeMap::new(),
            version: 0,
            pending: VecDeque::new(),
            tickets: 0,
            hosts: hosts.into_iter().map(|host| host.to_string()).collect(),
            lookups: VecDeque::new(),
            advertise,
            stream: 0,
            told: Told::default(),
            owed: None,
        }
    }

    /// Takes what the disk had: a sidecar goes on with the services that it used before.
    pub(super) fn load(&mut self, resources: Vec<Resource>) -> Vec<Arc<Resource>> {
        for resource in resources {
            if self.kind == ProxyKind::Sidecar
                && let Some(host) = resource.name.strip_prefix("service/")
            {
                self.hosts.insert(host.to_owned());
            }
            self.applied.insert(resource.name.clone(), Arc::new(resource));
        }
        self.resources()
    }

    pub(super) fn resources(&self) -> Vec<Arc<Resource>> {
        self.applied.values().cloned().collect()
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn known(&self) -> Vec<KnownResource> {
        let known = |(name, resource): (&String, &Arc<Resource>)| KnownResource {
            name: name.clone(),
            version: resource.version.clone(),
        };
        self.applied.iter().map(known).collect()
    }

    pub(super) fn subscribe(&mut self, host: &MeshHost) -> Result<(), SubscriptionsFull> {
        let host = host.to_string();
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains(&host) {
            return Err(SubscriptionsFull);
        }
        self.hosts.insert(host);
        Ok(())
    }

    pub(super) fn look_up(&mut self, address: IpAddr) {
        let answered = self.applied.values().any(|resource| match &resource.resource {
            Some(Kind::Service(service)) => vips(service).any(|vip| vip == address),
            _ => false,
        });
        if answered || self.lookups.contains(&address) {
            return;
        }
        if self.lookups.len() >= MAX_LOOKUPS
            && let Some(oldest) = self.lookups.pop_front()
        {
            self.told.lookups.remove(&oldest);
        }
        self.lookups.push_back(address);
    }

    pub(super) fn unsubscribe(&mut self, host: &MeshHost) {
        let host = host.to_string();
        let name = service_resource(&host);
        self.hosts.remove(&host);
        for pending in &mut self.pending {
            pending.resources.retain(|resource| resource.name != name);
        }
        if self.applied.remove(&name).is_some() {
            self.version += 1;
        }
    }

    /// A new stream: everything is said again in its start message.
    pub(super) fn begin(&mut self) -> (Subscribe, Option<Advertise>) {
        self.stream += 1;
        self.owed = None;
        self.told = Told {
            hosts: self.hosts.clone(),
            lookups: self.lookups.iter().copied().collect(),
            advertise: self.advertise.clone(),
            revision: 0,
        };
        let subscribe = Subscribe {
            add_hosts: self.hosts.iter().cloned().collect(),
            remove_hosts: Vec::new(),
            add_addresses: self.lookups.iter().map(ToString::to_string).collect(),
        };
        (subscribe, self.advertise.clone())
    }

    /// Takes a response in: what of it is for the user, and under which ticket. A service that nobody asks for any more
    /// is left out.
    pub(super) fn received(&mut self, response: WatchResponse) -> (u64, Vec<Arc<Resource>>, Vec<String>) {
        let mut resources = Vec::with_capacity(response.resources.len());
        for resource in response.resources {
            if self.wanted(&resource) {
                resources.push(Arc::new(resource));
            }
        }
        self.tickets += 1;
        self.pending.push_back(Pending {
            ticket: self.tickets,
            stream: self.stream,
            revision: response.revision,
            resources: resources.clone(),
            removed: response.removed.clone(),
        });
        (self.tickets, resources, response.removed)
    }

    fn wanted(&mut self, resource: &Resource) -> bool {
        let Some(host) = resource.name.strip_prefix("service/").filter(|_| self.kind == ProxyKind::Sidecar) else {
            return true;
        };
        let Some(Kind::Service(service)) = &resource.resource else { return self.hosts.contains(host) };
        let before = self.lookups.len();
        self.lookups.retain(|address| !vips(service).any(|vip| vip == *address));
        if self.lookups.len() < before {
            // The server has subscribed it on its own.
            self.hosts.insert(host.to_owned());
            self.told.hosts.insert(host.to_owned());
        }
        self.hosts.contains(host)
    }

    /// The user has applied everything up to a ticket, but for the rejected resources of it.
    pub(super) fn applied(&mut self, ticket: u64, rejected: &[&str], error: &str) {
        while self.pending.front().is_some_and(|pending| pending.ticket <= ticket) {
            let Some(pending) = self.pending.pop_front() else { return };
            let skip = |name: &str| pending.ticket == ticket && rejected.contains(&name);
            for name in pending.removed.iter().filter(|name| !skip(name)) {
                self.version += u64::from(self.applied.remove(name).is_some());
            }
            for resource in pending.resources.iter().filter(|resource| !skip(&resource.name)) {
                self.applied.insert(resource.name.clone(), Arc::clone(resource));
                self.version += 1;
            }
            if pending.stream == self.stream {
                let (_, earlier) = self.owed.take().unwrap_or_default();
                let text = if pending.ticket == ticket { error } else { "" };
                self.owed = Some((pending.revision, joined(earlier, text)));
            }
        }
    }

    /// The next thing the stream is to be told.
    pub(super) fn next_request(&mut self) -> Option<ToSend> {
        if let Some(subscribe) = self.subscription_change() {
            return Some(ToSend::Subscribe(subscribe));
        }
        let advertise = self.advertise.clone().filter(|advertise| self.told.advertise.as_ref() != Some(advertise));
        if self.owed.is_none() && advertise.is_none() {
            return None;
        }
        let (revision, error) = self.owed.take().unwrap_or((self.told.revision, String::new()));
        self.told.revision = revision;
        if advertise.is_some() {
            self.told.advertise.clone_from(&advertise);
        }
        Some(ToSend::Ack(WatchAck { revision, error, advertise }))
    }

    pub(super) fn has_request(&self) -> bool {
        self.owed.is_some()
            || self.hosts != self.told.hosts
            || self.lookups.iter().any(|address| !self.told.lookups.contains(address))
            || (self.advertise.is_some() && self.advertise != self.told.advertise)
    }

    fn subscription_change(&mut self) -> Option<Subscribe> {
        let added: Vec<IpAddr> = self.lookups.iter().filter(|it| !self.told.lookups.contains(it)).copied().collect();
        let change = Subscribe {
            add_hosts: self.hosts.difference(&self.told.hosts).cloned().collect(),
            remove_hosts: self.told.hosts.difference(&self.hosts).cloned().collect(),
            add_addresses: added.iter().map(ToString::to_string).collect(),
        };
        if change == Subscribe::default() {
            return None;
        }
        self.told.hosts.clone_from(&self.hosts);
        self.told.lookups = self.lookups.iter().copied().collect();
        Some(change)
    }
}

/// What goes to the server.
#[derive(Debug, PartialEq)]
pub(super) enum ToSend {
    Subscribe(Subscribe),
    Ack(WatchAck),
}

fn joined(mut earlier: String, text: &str) -> String {
    if !earlier.is_empty() && !text.is_empty() {
        earlier.push_str("; ");
    }
    earlier.push_str(text);
    earlier.truncate(earlier.floor_char_boundary(MAX_ERROR_BYTES));
    earlier
}
