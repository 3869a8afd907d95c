//! What follows from the inputs: files to write, records to publish, a snapshot to show.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use federation::{ClusterName, Namespace, RecordKey};
use federation_api::client::federation::SessionCursor;
use federation_api::client::trust::TrustCursor;
use federation_api::discovery::v1::Resource;
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::verify::VerifiedMember;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tracing::{error, warn};

use super::saved::next_bundle_sequence;
use super::{Now, Reconciler};
use crate::publications::{Publications, sign_own_bundle};
use crate::resources::{self, MeshFacts};
use crate::snapshot::{OwnBundle, Snapshot, Standing};

/// Cluster IPs of local services that sidecars are told of, at most: every one of them holds them all.
const MAX_LOCAL_ADDRESSES: usize = 16_384;

/// What is to be done, in this order: roots, files, snapshot, then the words to the federation.
#[derive(Debug, Default)]
pub struct Effects {
    /// Whom to believe from now on.
    pub trust: Option<TrustEffect>,
    /// State files by name: durable before anything below is said.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// What everybody sees from now on.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Signed records to publish.
    pub publish: Vec<Signed>,
    /// The namespaces of the cluster, whenever something is shown.
    pub namespaces: Option<Arc<BTreeSet<Namespace>>>,
    /// Other clusters' records are applied, and written down, up to here.
    pub session_applied: Option<SessionCursor>,
    /// The session is to begin again, with a snapshot.
    pub begin_anew: bool,
    /// The trust state is applied, and written down, up to here.
    pub trust_applied: Option<TrustCursor>,
    /// The cluster's own bundle, signed anew: the federation has another one, or none.
    pub bundle: Option<Signed>,
}

/// Whom the mesh believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustEffect {
    /// Roots by trust domain, the cluster's own among them.
    pub bundles: Vec<Bundle>,
    /// Who is shut out, whatever the bundles say.
    pub denied: mesh_tls::DenyList,
}

impl Reconciler {
    /// Computes what follows from the inputs since the last call.
    pub fn flush(&mut self, now: Now) -> Effects {
        let mut effects = Effects::default();
        if std::mem::take(&mut self.dirty.trust) {
            let trust = self.trust_effect();
            self.foreign.judge(&trust.bundles);
            effects.trust = Some(trust);
            effects.bundle = self.own_bundle(now);
            effects.trust_applied =
                Some(self.peers.trust().cursor().clone()).filter(|cursor| *cursor != TrustCursor::default());
        }
        if self.source_synced {
            self.refresh_local(now);
            self.say(&mut effects, now);
            self.refresh_views(now);
        }
        effects.session_applied = self.session_cursor.take();
        effects.begin_anew = std::mem::take(&mut self.begin_anew);
        self.save(&mut effects);
        if std::mem::take(&mut self.dirty.snapshot) && self.source_synced {
            effects.snapshot = Some(self.snapshot());
            effects.namespaces = Some(Arc::clone(&self.namespaces));
        }
        effects
    }

    /// Signs what changed of the own records.
    fn say(&mut self, effects: &mut Effects, now: Now) {
        if std::mem::take(&mut self.dirty.records) {
            if self.gateways.is_empty() {
                self.wanted.remove(&RecordKey::Gateways);
            } else {
                self.wanted.insert(RecordKey::Gateways, Payload::Gateways(self.gateways.clone()));
            }
            let nothing = BTreeMap::new();
            let wanted = if self.leaving { &nothing } else { &self.wanted };
            if let Some(publications) = &mut self.publications {
                match publications.say(wanted, now.system) {
                    Ok(news) => {
                        self.save.published |= !news.is_empty();
                        effects.publish = news;
                    }
                    Err(error) => error!(%error, "own records cannot be signed"),
                }
            }
            self.dirty.snapshot = true;
        }
        if let Some(publications) = &mut self.publications {
            match publications.sign_again(now.instant, now.system) {
                Ok(news) if news.is_empty() => {}
                Ok(news) => {
                    if news.len() > 1 {
                        warn!(records = news.len(), "the federator has newer records of this cluster: signed again");
                    }
                    self.save.published = true;
                    // Later ones replace earlier ones of the same keys.
                    effects.publish.extend(news);
                }
                Err(error) => error!(%error, "own records cannot be signed"),
            }
        }
        if self.publish_all
            && let Some(publications) = &self.publications
        {
            effects.publish = publications.envelopes();
            self.publish_all = false;
        }
    }

    fn trust_effect(&self) -> TrustEffect {
        let trust = self.peers.trust();
        let own = std::iter::once(self.facts.bundle.clone());
        let others = trust.bundles().filter(|(cluster, _)| **cluster != self.facts.cluster);
        let list = trust.deny_list();
        // A cluster that is shut out itself goes on serving its own proxies.
        let shut_out = list.clusters.iter().filter(|cluster| **cluster != self.facts.cluster);
        let domain = |cluster| self.facts.federation.trust_domain(cluster).parse::<TrustDomain>().ok();
        TrustEffect {
            bundles: own.chain(others.map(|(_, bundle)| bundle.clone())).collect(),
            denied: mesh_tls::DenyList {
                trust_domains: shut_out.filter_map(domain).collect(),
                ids: list.spiffe_ids.iter().filter_map(|id| id.parse::<SpiffeId>().ok()).collect(),
            },
        }
    }

    /// The own bundle's record, when the federation is known to have another one or none.
    fn own_bundle(&mut self, now: Now) -> Option<Signed> {
        let trust = self.peers.trust();
        if trust.cursor().incarnation.is_empty() || trust.member(&self.facts.cluster).is_none() {
            return None;
        }
        let standing = self.standing();
        let known = trust.own_bundle(&self.facts.cluster);
        if standing != Standing::Good || (!self.bundle_missing && self.is_published(known)) {
            return None;
        }
        if let Some(known) = known.filter(|known| known.sequence >= self.facts.bundle.sequence) {
            self.facts.bundle.sequence = next_bundle_sequence(known.sequence, now.system);
            self.save.bundle = true;
            self.dirty.snapshot = true;
        }
        let publications = self.publications.as_mut()?;
        let signed = sign_own_bundle(publications, &self.facts.bundle, now.system);
        signed.inspect_err(|error| error!(%error, "the own bundle cannot be signed")).ok()
    }

    fn is_published(&self, known: Option<&Bundle>) -> bool {
        known.is_some_and(|known| known.x509_authorities == self.facts.bundle.x509_authorities)
    }

    /// What the operator's, or a successor's, signed words make of the own membership.
    fn standing(&self) -> Standing {
        let (own, trust) = (&self.facts.cluster, self.peers.trust());
        let Some(publications) = &self.publications else { return Standing::Good };
        let generation = publications.speaker().generation;
        match trust.member(own).map(VerifiedMember::generation) {
            Some(newer) if newer > generation => Standing::Replaced(newer),
            _ if trust.deny_list().evicts(own, generation) => Standing::Evicted,
            _ if trust.deny_list().quarantines(own) => Standing::Quarantined,
            _ => Standing::Good,
        }
    }

    fn own_bundle_view(&self) -> OwnBundle {
        let trust = self.peers.trust();
        let published = !self.bundle_missing && self.is_published(trust.own_bundle(&self.facts.cluster));
        OwnBundle {
            sequence: self.facts.bundle.sequence,
            roots: self.facts.bundle.x509_authorities.clone(),
            published: published.then_some(trust.cursor().epoch),
        }
    }

    /// The other clusters that have gateways and are not shut out.
    fn remotes(&self) -> BTreeMap<ClusterName, Arc<Resource>> {
        let usable = self.clusters.iter().filter(|(_, status)| !status.quarantined && !status.gateways.is_empty());
        usable.map(|(cluster, status)| (cluster.clone(), resources::remote(cluster, &status.gateways))).collect()
    }

    fn refresh_cluster_ips(&mut self) {
        let services = self.local_services.keys().filter_map(|id| self.services.get(id)?.service.as_ref());
        let addresses = services.flat_map(|service| service.addresses.iter().map(|it| (*it, service.id.clone())));
        let by_cluster_ip: HashMap<_, _> = addresses.take(MAX_LOCAL_ADDRESSES).collect();
        if by_cluster_ip == *self.by_cluster_ip {
            return;
        }
        if by_cluster_ip.len() == MAX_LOCAL_ADDRESSES {
            warn!(addresses = MAX_LOCAL_ADDRESSES, "more services have opted in than sidecars are told of");
        }
        self.local_addresses = resources::local_services(by_cluster_ip.keys());
        self.by_cluster_ip = Arc::new(by_cluster_ip);
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        self.refresh_cluster_ips();
        let trust = self.peers.trust();
        let others = trust.bundles().filter(|(cluster, _)| **cluster != self.facts.cluster).map(|(_, bundle)| bundle);
        let bundles = std::iter::once(&self.facts.bundle).chain(others).chain(self.foreign.believed());
        let by_vip: HashMap<_, _> = self.views.values().flat_map(|view| view.hosts_by_address()).collect();
        if by_vip != *self.by_vip {
            self.by_vip = Arc::new(by_vip);
        }
        self.shown += 1;
        Arc::new(Snapshot {
            revision: self.shown,
            synced: self.source_synced && self.peers_synced,
            namespaces: Arc::clone(&self.namespaces),
            services: self.views.clone(),
            by_vip: Arc::clone(&self.by_vip),
            local_services: self.local_services.clone(),
            by_cluster_ip: Arc::clone(&self.by_cluster_ip),
            local_addresses: self.local_addresses.clone(),
            routes: self.routes.clone(),
            remotes: self.remotes(),
            trust: bundles.map(|bundle| (bundle.trust_domain.to_string(), resources::trust_bundle(bundle))).collect(),
            mesh: resources::mesh(&MeshFacts {
                cluster: self.facts.cluster.as_str(),
                federation: self.facts.federation.as_str(),
                trust_domain: &self.facts.trust_domain,
                applied: self.federator.last_applied,
                trust_confirmed: self.trust_bundle.last_applied,
                deny_list: trust.deny_list_envelope(),
                membership_root: trust.root().map(|root| root.as_bytes().as_slice()),
                clusterset_ranges: self.vips.ranges(),
                egress_gateways: &self.egress_gateways,
            }),
            workloads: self.workloads.clone(),
            local: self.services.clone(),
            exports: self.exports.clone(),
            clusters: self.clusters.clone(),
            trust_epoch: trust.cursor().epoch,
            own_bundle: Arc::new(self.own_bundle_view()),
            standing: self.standing(),
            last_sequence: self.publications.as_ref().map_or(0, Publications::last_sequence),
            leaving: self.leaving,
            withdrawn: self.leaving && self.publications.as_ref().is_some_and(Publications::all_answered),
            denied: Arc::new(trust.deny_list().spiffe_ids.clone()),
            foreign_refused: self.foreign.refused(),
            source: Arc::clone(&self.source),
            federator: self.federator.clone(),
            trust_bundle: self.trust_bundle.clone(),
            generation: self.publications.as_ref().map(|publications| publications.speaker().generation),
            gateways: Arc::new(self.gateways.clone()),
        })
    }
}
