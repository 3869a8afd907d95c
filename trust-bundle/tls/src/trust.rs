//! The roots everybody is judged by, keyed by trust domain and swapped while connections live.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use spiffe_identity::{Bundle, MAX_AUTHORITIES, SpiffeId, TrustDomain, Validity, check_authority, validity};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    Peer, PeerError,
    verify::{Purpose, verify_chain},
};

/// Roots by trust domain, and the deny-list that overrides them. Clones share one store; readers never wait for writers.
#[derive(Clone)]
pub struct TrustStore {
    inner: Arc<Inner>,
}

struct Inner {
    snapshot: ArcSwap<Snapshot>,
    /// Serialises writers, so that two of them cannot lose each other's change. Never held over an await.
    writer: Mutex<()>,
    revision: watch::Sender<u64>,
}

/// Whom nobody may be, whatever their roots say: the quarantine as receivers apply it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    /// Trust domains denied as a whole.
    pub trust_domains: BTreeSet<TrustDomain>,
    /// Single identities.
    pub ids: BTreeSet<SpiffeId>,
}

impl DenyList {
    /// Whether the list names this identity or its trust domain.
    pub fn denies(&self, id: &SpiffeId) -> bool {
        self.trust_domains.contains(id.trust_domain()) || self.ids.contains(id)
    }
}

#[derive(Clone, Default)]
pub(crate) struct Snapshot {
    domains: HashMap<TrustDomain, Domain>,
    pub(crate) denied: DenyList,
    /// When set, peers of every other trust domain are not believed.
    only: Option<TrustDomain>,
}

#[derive(Clone)]
struct Domain {
    bundle: Bundle,
    /// Shared between snapshots as long as the roots stay the same, so that a change elsewhere is seen to be none here.
    roots: Arc<Roots>,
}

/// The roots of one trust domain, ready for path building.
pub(crate) struct Roots {
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    /// Of each anchor, in the same order; webpki does not look at an anchor's own validity.
    pub(crate) validities: Vec<Validity>,
}

impl Snapshot {
    /// What overrides roots.
    pub(crate) fn overridden(&self, id: &SpiffeId) -> Option<PeerError> {
        if self.denied.denies(id) {
            return Some(PeerError::Denied(id.clone()));
        }
        let lapsed = self.only.as_ref().is_some_and(|only| only != id.trust_domain());
        lapsed.then(|| PeerError::Lapsed(id.clone()))
    }

    pub(crate) fn roots(&self, trust_domain: &TrustDomain) -> Option<&Arc<Roots>> {
        self.domains.get(trust_domain).map(|domain| &domain.roots)
    }
}

impl TrustStore {
    /// A store that trusts nobody.
    pub fn new() -> Self {
        let inner = Inner {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            writer: Mutex::new(()),
            revision: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Replaces all bundles at once. Of two bundles for one trust domain the first counts, since roots are never pooled.
    pub fn replace(&self, bundles: impl IntoIterator<Item = Bundle>) {
        let bundles: Vec<Bundle> = bundles.into_iter().collect();
        self.update(|snapshot| {
            let old = std::mem::take(&mut snapshot.domains);
            for bundle in bundles {
                let trust_domain = bundle.trust_domain.clone();
                if snapshot.domains.contains_key(&trust_domain) {
                    warn!(%trust_domain, "two bundles for one trust domain: the second is left out");
                    continue;
                }
                let domain = Domain::new(bundle, old.get(&trust_domain));
                snapshot.domains.insert(trust_domain, domain);
            }
        });
    }

    /// Sets the bundle of one trust domain. A bundle without roots rejects every peer of that trust domain.
    pub fn insert(&self, bundle: Bundle) {
        self.update(|snapshot| {
            let trust_domain = bundle.trust_domain.clone();
            let domain = Domain::new(bundle, snapshot.domains.get(&trust_domain));
            snapshot.domains.insert(trust_domain, domain);
        });
    }

    /// Forgets a trust domain: every later handshake with a peer of it fails.
    pub fn remove(&self, trust_domain: &TrustDomain) {
        self.update(|snapshot| {
            snapshot.domains.remove(trust_domain);
        });
    }

    /// Replaces the deny-list. It overrides bundles, those that arrive later as well.
    pub fn deny(&self, denied: DenyList) {
        self.update(|snapshot| snapshot.denied = denied);
    }

    /// From now on believes peers of this trust domain alone, or with `None` everybody again whom the roots vouch for: what
    /// is known of the others is too old to go by. Live connections are judged again as after [`deny`](Self::deny).
    pub fn believe_only(&self, own: Option<TrustDomain>) {
        self.update(|snapshot| snapshot.only = own);
    }

    /// Whether peers of this trust domain are not believed, because of [`believe_only`](Self::believe_only).
    pub fn has_lapsed(&self, trust_domain: &TrustDomain) -> bool {
        self.inner.snapshot.load().only.as_ref().is_some_and(|only| only != trust_domain)
    }

    /// The deny-list in force.
    pub fn denied(&self) -> DenyList {
        self.inner.snapshot.load().denied.clone()
    }

    /// The trust domains with a bundle, sorted.
    pub fn trust_domains(&self) -> Vec<TrustDomain> {
        let mut names: Vec<_> = self.inner.snapshot.load().domains.keys().cloned().collect();
        names.sort();
        names
    }

    /// The bundle of a trust domain, as it was given.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<Bundle> {
        self.inner.snapshot.load().domains.get(trust_domain).map(|domain| domain.bundle.clone())
    }

    /// Counts the changes: owners of live connections wait on it and look at their peers again.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    /// Judges a chain, leaf first, as the verifier of a handshake does, except for expected identities.
    ///
    /// # Errors
    /// Why the peer is not believed.
    pub fn verify(&self, chain: &[CertificateDer<'_>], purpose: Purpose, now: UnixTime) -> Result<SpiffeId, PeerError> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        verify_chain(&self.inner.snapshot.load(), leaf, intermediates, purpose, now)
    }

    /// Whether a connected peer would still be believed. Its own validity is judged at the time of its handshake, so that a
    /// live connection outlasts its certificate, but neither a quarantine nor the loss of its root.
    ///
    /// # Errors
    /// Why the peer is no longer believed.
    pub fn still_trusts(&self, peer: &Peer) -> Result<(), PeerError> {
        self.verify(peer.chain(), peer.purpose(), peer.verified_at()).map(|_| ())
    }

    /// Completes when `peer` is no longer believed, and says why: what the owner of a live connection selects on.
    pub fn distrusted(&self, peer: Peer) -> impl Future<Output = PeerError> + Send + 'static {
        let trust = self.clone();
        async move {
            let mut revision = trust.changed();
            let mut judged_by: Option<Arc<Roots>> = None;
            loop {
                revision.borrow_and_update();
                if let Err(error) = trust.judge_again(&peer, &mut judged_by) {
                    return error;
                }
                if revision.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Verifies the chain again only when the roots of the peer's trust domain are others than the last time.
    fn judge_again(&self, peer: &Peer, judged_by: &mut Option<Arc<Roots>>) -> Result<(), PeerError> {
        let snapshot = self.inner.snapshot.load();
        if let Some(error) = snapshot.overridden(peer.id()) {
            return Err(error);
        }
        let roots = snapshot.roots(peer.id().trust_domain());
        if let (Some(now), Some(then)) = (roots, judged_by.as_ref())
            && Arc::ptr_eq(now, then)
        {
            return Ok(());
        }
        let roots = roots.cloned();
        drop(snapshot);
        self.still_trusts(peer)?;
        *judged_by = roots;
        Ok(())
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let guard = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut snapshot = Snapshot::clone(&self.inner.snapshot.load());
        change(&mut snapshot);
        self.inner.snapshot.store(Arc::new(snapshot));
        self.inner.revision.send_modify(|revision| *revision += 1);
        drop(guard);
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.snapshot.load_full()
    }
}

impl Domain {
    fn new(bundle: Bundle, old: Option<&Self>) -> Self {
        let roots = match old {
            Some(old) if old.bundle.x509_authorities == bundle.x509_authorities => old.roots.clone(),
            _ => Arc::new(Roots::of(&bundle)),
        };
        Self { bundle, roots }
    }
}

impl Roots {
    /// A bundle's fields are public, so what `Bundle::from_jwks` promises is checked again here; a root that may not sign
    /// for the trust domain is left out, with a warning.
    fn of(bundle: &Bundle) -> Self {
        let mut roots = Self { anchors: Vec::new(), validities: Vec::new() };
        for der in bundle.x509_authorities.iter().take(MAX_AUTHORITIES) {
            if let Err(error) = roots.push(der, &bundle.trust_domain) {
                warn!(trust_domain = %bundle.trust_domain, %error, "a root is left out");
            }
        }
        if bundle.x509_authorities.len() > MAX_AUTHORITIES {
            let roots = bundle.x509_authorities.len();
            warn!(trust_domain = %bundle.trust_domain, roots, "more than 16 roots: the rest is left out");
        }
        roots
    }

    fn push(&mut self, der: &CertificateDer<'static>, trust_domain: &TrustDomain) -> Result<(), String> {
        check_authority(der, trust_domain).map_err(|error| error.to_string())?;
        let validity = validity(der).map_err(|error| error.to_string())?;
        let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| error.to_string())?;
        self.anchors.push(anchor.to_owned());
        self.validities.push(validity);
        Ok(())
    }
}

impl Default for TrustStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustStore").field("trust_domains", &self.trust_domains()).finish_non_exhaustive()
    }
}
