//! The two streams of a member, and the renewal of its certificate.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use federation_api::client::federation::{Session, SessionCursor, SessionEvent, SessionOptions};
use federation_api::client::trust::{self, TrustAcks, TrustCursor, TrustEvent};
use federation_api::client::{Events, Reconnect};
use federation_api::trust::v1::WatchResponse;
use mesh_tls::{Identity, Purpose, TrustStore, new_key_and_csr};
use rand::RngExt as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe_identity::SpiffeId;
use tokio::time::{MissedTickBehavior, interval};
use tonic::transport::Channel;
use tracing::{info, warn};

use super::Plane;
use crate::membership::{self, Membership, MembershipError};
use crate::reconciler::{Input, SessionInput};
use crate::resources::AGE_STEP;

/// When to renew the member certificate, as parts of its life.
const RENEW_AFTER: Range<f64> = 0.45..0.55;
/// The least time between two renewals, whatever the clocks say.
const LEAST_RENEWAL: Duration = Duration::from_secs(1);
/// A renewal that failed is tried again after a tenth of the time that is left, at least this.
const RENEWAL_RETRY: Duration = Duration::from_secs(2);
/// How the trust-bundle knows the one control-plane of a cluster that is at work. A standby that takes over, or a process
/// that comes back, takes the name over too: nobody waits for the connection that was lost.
const REPLICA: &str = "leader";
/// A bundle that could not be published is tried again after this long.
const BUNDLE_RETRY: Duration = Duration::from_secs(5);
/// How often a rotation asks who watches.
const WATCHERS_INTERVAL: Duration = Duration::from_millis(300);
/// How often proxies' progress is passed on at most.
const ACK_INTERVAL: Duration = Duration::from_millis(50);

/// Where the streams go on.
#[derive(Clone, Debug, Default)]
pub(super) struct Resume {
    pub(super) trust: TrustCursor,
    pub(super) session: SessionCursor,
}

/// Says once that a service is lost, and again only for another reason: attempts go on for as long as it takes.
struct Loss {
    service: &'static str,
    reason: Option<String>,
}

impl Loss {
    fn of(service: &'static str) -> Self {
        Self { service, reason: None }
    }

    fn because(&mut self, reason: String) -> String {
        if self.reason.as_ref() != Some(&reason) {
            warn!(service = self.service, reason, "a service of the federation is lost");
            self.reason = Some(reason.clone());
        }
        reason
    }

    fn over(&mut self) {
        if self.reason.take().is_some() {
            info!(service = self.service, "the service of the federation is back");
        }
    }
}

impl Plane {
    /// Does what a member does, until the reconciler is gone.
    pub(super) async fn be_member(&self, membership: Arc<Mutex<Membership>>) -> Result<(), MembershipError> {
        let mut snapshots = self.snapshots.clone();
        let (identity, plane_trust, trust_bundle, federator) = {
            let membership = membership.lock().unwrap_or_else(PoisonError::into_inner);
            let (identity, trust) = self.plane_trust(&membership)?;
            let plane = &self.facts.plane;
            let trust_bundle =
                membership::trust_bundle_channel(&membership.trust_bundle_addresses, Some(&identity), &trust, plane)?;
            let addresses = &membership.federator_addresses;
            let federator = membership::plane_channel(addresses, Some(&identity), &trust, plane, "federator")?;
            (identity, trust, trust_bundle, federator)
        };
        let own = SpiffeId::control_plane(&self.facts.plane, self.facts.cluster.as_str());
        self.handle.shared.own.send_replace(own.ok().map(|id| id.to_string()));
        self.tell_of_certificate(&identity);
        let (acks, events) = trust::watch_as(
            trust_bundle.clone(),
            REPLICA.to_owned(),
            self.restored.trust.clone(),
            Reconnect::default(),
        );
        let watching = self.watch_trust(events, &plane_trust, &membership);
        // Before the cluster's own objects are read nobody knows its namespaces, nor what it has to say.
        let session = async {
            let shown = snapshots.wait_for(|snapshot| snapshot.revision > 0).await.is_ok();
            if shown {
                self.hold_session(federator).await;
            }
        };
        tokio::select! {
            () = watching => {}
            () = session => {}
            () = self.acknowledge(acks) => {}
            () = self.publish_bundles(trust_bundle.clone()) => {}
            () = self.renew(trust_bundle.clone(), &identity, &plane_trust, &membership) => {}
            () = self.ask_for_watchers(trust_bundle.clone()) => {}
            () = self.keep_publish_key(trust_bundle.clone(), &membership) => {}
            () = self.leave(trust_bundle.clone(), &membership) => {}
        }
        Ok(())
    }

    async fn watch_trust(
        &self,
        mut events: Events<TrustEvent>,
        plane_trust: &TrustStore,
        membership: &Arc<Mutex<Membership>>,
    ) {
        let mut loss = Loss::of("trust-bundle");
        // The watch is silent while nothing changes; its connection is kept alive, and ends when nothing answers.
        let mut confirmations = interval(AGE_STEP);
        confirmations.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut confirmed = false;
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                _ = confirmations.tick(), if confirmed => {
                    if self.inputs.send(Input::TrustConfirmed).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Some(event) = event else { return };
            // A watch that is open and has said nothing yet confirms nothing: its first word says what is missing.
            confirmed = matches!(event, TrustEvent::Update(_));
            confirmations.reset();
            let input = match event {
                TrustEvent::Connected => {
                    loss.over();
                    Input::TrustLink(Ok(()))
                }
                TrustEvent::Disconnected { reason, .. } => Input::TrustLink(Err(loss.because(reason.to_string()))),
                TrustEvent::Update(update) => {
                    self.take_federation_roots(&update, plane_trust, membership).await;
                    Input::Trust(Box::new(update))
                }
            };
            if self.inputs.send(input).await.is_err() {
                return;
            }
        }
    }

    async fn take_federation_roots(
        &self,
        update: &WatchResponse,
        plane_trust: &TrustStore,
        membership: &Arc<Mutex<Membership>>,
    ) {
        let roots: Vec<_> = update.federation_roots.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let replaced = {
            let mut membership = membership.lock().unwrap_or_else(PoisonError::into_inner);
            let replaced = membership.replace_federation_roots(roots);
            if replaced {
                plane_trust.insert(membership.plane_bundle(&self.facts.plane));
            }
            replaced
        };
        if replaced {
            info!("the federation has other roots");
            self.save(membership).await;
        }
    }

    pub(super) async fn save(&self, membership: &Arc<Mutex<Membership>>) {
        let (membership, state) = (Arc::clone(membership), self.facts.state.clone());
        let saved =
            tokio::task::spawn_blocking(move || membership.lock().unwrap_or_else(PoisonError::into_inner).save(&state));
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the membership cannot be written down"),
            Err(error) => warn!(%error, "the membership cannot be written down"),
        }
    }

    async fn hold_session(&self, channel: Channel) {
        let options = SessionOptions {
            replica: self.facts.cluster.to_string(),
            namespaces: self.snapshots.borrow().namespaces.as_ref().clone(),
            publisher: true,
            cursor: self.restored.session.clone(),
            reconnect: Reconnect::default(),
        };
        let (session, mut events) = Session::open(channel, options);
        // The namespaces may have changed since they were read.
        session.set_namespaces(self.snapshots.borrow().namespaces.as_ref().clone());
        *self.handle.session() = Some(session);
        let mut loss = Loss::of("federator");
        while let Some(event) = events.recv().await {
            let input = match event {
                SessionEvent::Connected(welcome) => {
                    loss.over();
                    info!(replica = welcome.replica, resumed = welcome.resumed, "the federator is connected");
                    SessionInput::Connected { incarnation: welcome.incarnation, resumed: welcome.resumed }
                }
                SessionEvent::Changes { records, cursor, .. } => SessionInput::Changes(records, cursor),
                SessionEvent::SnapshotComplete { namespaces, cursor, .. } => {
                    SessionInput::SnapshotComplete(namespaces, cursor)
                }
                SessionEvent::Published(results) => SessionInput::Published(results),
                SessionEvent::Liveness(clusters) => SessionInput::Liveness(clusters),
                SessionEvent::Heartbeat { revision, .. } => SessionInput::Heartbeat(revision),
                SessionEvent::Disconnected { reason, .. } => {
                    SessionInput::Disconnected(loss.because(reason.to_string()))
                }
            };
            if self.inputs.send(Input::Session(input)).await.is_err() {
                return;
            }
        }
    }

    /// Tells the trust-bundle how far this cluster is, and which of its proxies are not.
    async fn acknowledge(&self, acks: TrustAcks) {
        let mut applied = self.handle.shared.trust_applied.subscribe();
        let mut proxies = self.proxies.changed();
        loop {
            let cursor = applied.borrow_and_update().clone();
            proxies.borrow_and_update();
            if cursor != TrustCursor::default() {
                let (pending, connected) = self.proxies.pending(cursor.epoch);
                acks.applied(cursor, pending, connected);
            }
            tokio::time::sleep(ACK_INTERVAL).await;
            let changed = tokio::select! {
                changed = applied.changed() => changed,
                changed = proxies.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// While a rotation wants to know: who watches the trust state, and how far each is.
    async fn ask_for_watchers(&self, channel: Channel) {
        let mut watching = self.handle.shared.watching.subscribe();
        loop {
            if watching.wait_for(|(root, key)| *root || *key).await.is_err() {
                return;
            }
            let listed = trust::list_watchers(channel.clone()).await;
            let listed = listed.inspect_err(|status| warn!(%status, "who watches the trust state is not known"));
            self.handle.shared.watchers.send_replace(listed.ok().map(|listed| listed.watchers));
            tokio::time::sleep(WATCHERS_INTERVAL).await;
            if *watching.borrow() == (false, false) {
                // The next rotation must not begin with what this one saw.
                self.handle.shared.watchers.send_replace(None);
            }
        }
    }

    async fn publish_bundles(&self, channel: Channel) {
        let mut bundles = self.handle.shared.bundle.subscribe();
        loop {
            let bundle = bundles.borrow_and_update().clone();
            let published = match bundle {
                None => true,
                Some(bundle) => match trust::publish_bundle(channel.clone(), bundle).await {
                    Ok(()) => true,
                    Err(status) => {
                        warn!(%status, "the cluster's bundle is not published");
                        false
                    }
                },
            };
            if published {
                if bundles.changed().await.is_err() {
                    return;
                }
            } else {
                tokio::time::sleep(BUNDLE_RETRY).await;
            }
        }
    }

    /// Renews the member certificate at half of its life, or as soon as the federation has no root any more that it is
    /// below: the present connection is the last on which that can be asked for.
    async fn renew(
        &self,
        channel: Channel,
        identity: &Identity,
        plane_trust: &TrustStore,
        membership: &Arc<Mutex<Membership>>,
    ) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(until_renewal(identity).max(LEAST_RENEWAL)) => {}
                () = root_gone(identity, plane_trust) => {
                    info!("the root that the member certificate is below is gone: renewing at once");
                }
            }
            match self.renewed(channel.clone(), identity, membership).await {
                Ok(()) => {
                    info!("the member certificate is renewed");
                    self.handle.shared.renewal.send_modify(|renewal| renewal.problem = None);
                    self.save(membership).await;
                }
                Err(error) => {
                    let problem = not_renewed(&error, identity.not_after(), SystemTime::now());
                    warn!(problem, "the member certificate is not renewed");
                    self.handle.shared.renewal.send_modify(|renewal| renewal.problem = Some(problem));
                    let left = identity.not_after().and_then(|end| end.duration_since(SystemTime::now()).ok());
                    tokio::time::sleep((left.unwrap_or_default() / 10).max(RENEWAL_RETRY)).await;
                }
            }
            self.tell_of_certificate(identity);
        }
    }

    fn tell_of_certificate(&self, identity: &Identity) {
        self.handle.shared.renewal.send_modify(|renewal| renewal.not_after = identity.not_after());
    }

    async fn renewed(
        &self,
        channel: Channel,
        identity: &Identity,
        membership: &Arc<Mutex<Membership>>,
    ) -> Result<(), MembershipError> {
        let (key, csr) = new_key_and_csr().map_err(|error| MembershipError::Unusable(error.to_string()))?;
        let renewed = trust::renew(channel, csr).await;
        let response = renewed.map_err(|status| MembershipError::Refused(Box::new(status)))?;
        let chain = response.certificate_chain.into_iter().map(|der| CertificateDer::from(der.to_vec()));
        let chain: Vec<_> = chain.collect();
        membership::check_certificate(&chain, &key, &self.facts.plane, &self.facts.cluster)?;
        membership.lock().unwrap_or_else(PoisonError::into_inner).replace_certificate(chain.clone(), &key);
        identity.replace(chain, key).map_err(|error| MembershipError::Unusable(error.to_string()))
    }
}

/// What an operator is told of a renewal that failed: as long as the certificate is valid it is tried again and nobody has to
/// do anything; once it has ended no service of the federation knows this cluster any more.
fn not_renewed(error: &MembershipError, not_after: Option<SystemTime>, now: SystemTime) -> String {
    if not_after.is_some_and(|end| end > now) {
        return format!("{error}; the one before is still valid");
    }
    format!("it has ended, so nothing of the federation lets this cluster in: join again with a new token ({error})")
}

/// Zero when half of the life is over.
fn until_renewal(identity: &Identity) -> Duration {
    let Some(validity) = identity.validity() else { return RENEWAL_RETRY };
    let due = validity.after(rand::rng().random_range(RENEW_AFTER));
    due.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Waits until nobody who knows the federation's roots believes the certificate any more, and a moment longer: members do
/// not renew all at once.
async fn root_gone(identity: &Identity, plane_trust: &TrustStore) {
    let mut roots = plane_trust.changed();
    while plane_trust.verify(&identity.chain(), Purpose::Client, UnixTime::now()).is_ok() {
        if roots.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
    let moment = LEAST_RENEWAL.mul_f64(rand::rng().random_range(1.0..2.0));
    tokio::time::sleep(moment).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_has_ended_asks_for_a_new_token_and_one_that_has_not_for_nothing() {
        let (now, error) = (SystemTime::now(), MembershipError::Unusable("no answer".to_owned()));
        let say = |end| not_renewed(&error, Some(end), now);
        let valid = say(now + Duration::from_secs(1));
        assert!(valid.contains("no answer") && valid.ends_with("the one before is still valid"), "{valid}");
        let ended = say(now);
        assert!(ended.contains("no answer") && ended.contains("join again with a new token"), "{ended}");
        assert_eq!(not_renewed(&error, None, now), ended);
    }
}
