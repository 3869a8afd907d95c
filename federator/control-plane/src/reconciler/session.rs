//! The session with the federator: others' records, the own ones taken back, and when to begin again with a snapshot.

use federation::RecordKey;
use federation_api::client::federation::SessionCursor;
use federation_api::record::v1::Signed;
use tracing::warn;

use super::{Now, PeerChange, Reconciler, SessionInput};
use crate::peers;

impl Reconciler {
    pub(super) fn take_session(&mut self, input: SessionInput, now: Now) {
        self.dirty.snapshot = true;
        match input {
            SessionInput::Connected { incarnation, resumed } => {
                self.peers.session_begins(resumed);
                self.cursors_are_void = false;
                // Another history may lack what was stored in the one before.
                self.publish_all |= self.published_to.as_ref() != Some(&incarnation);
                self.published_to = Some(incarnation.clone());
                self.federator.incarnation = incarnation;
                self.federator.connected = true;
                self.federator.problem = None;
            }
            SessionInput::Changes(records, cursor) => {
                if !cursor.incarnation.is_empty() {
                    self.peers.covers(&cursor.namespaces);
                }
                let (own, others): (Vec<_>, Vec<_>) = records.into_iter().partition(|signed| self.is_own(signed));
                self.take_back(own);
                let change = self.peers.apply(others, now.system);
                self.touch(change);
                self.applied(cursor, now);
            }
            SessionInput::SnapshotComplete(namespaces, cursor) => {
                let change = self.peers.snapshot_complete(&namespaces, now.system);
                self.touch(change);
                self.peers_synced = true;
                self.applied(cursor, now);
            }
            SessionInput::Published(results) => {
                self.dirty.snapshot |= self.leaving;
                if self.publications.as_mut().is_some_and(|publications| publications.answer(&results)) {
                    let keys = results.iter().filter_map(|result| result.key.parse().ok());
                    self.dirty.services.extend(keys.filter_map(|key| match key {
                        RecordKey::Export(service) => Some(service),
                        _ => None,
                    }));
                }
            }
            SessionInput::Liveness(clusters) => {
                let change = self.peers.set_liveness(&clusters);
                self.touch(change);
            }
            SessionInput::Heartbeat(revision) => {
                self.federator.last_applied = Some(now.system);
                self.federator.revision = self.federator.revision.max(revision);
                let change = self.peers.check_heads(now.system);
                self.touch(change);
                self.begin_anew_if_needed(now);
            }
            SessionInput::Disconnected(reason) => {
                self.federator.connected = false;
                self.federator.problem = Some(reason);
            }
        }
    }

    fn applied(&mut self, cursor: SessionCursor, now: Now) {
        self.federator.revision = cursor.revision;
        self.federator.last_applied = Some(now.system);
        if !self.cursors_are_void {
            self.session_cursor = Some(cursor);
        }
        self.save.peers = true;
    }

    pub(super) fn is_own(&self, signed: &Signed) -> bool {
        peers::speaker(signed).is_some_and(|cluster| cluster == self.facts.cluster)
    }

    /// The federation has these of the cluster itself. What is news was said, and forgotten in a restore: it is written down,
    /// and what is not wanted any more can be withdrawn.
    fn take_back(&mut self, own: Vec<Signed>) {
        let Some(publications) = &mut self.publications else { return };
        let news = own.into_iter().map(|signed| publications.told(signed)).filter(|news| *news).count();
        if news > 0 {
            warn!(records = news, "the federation has records of this cluster that it had forgotten: taken back");
            self.dirty.records = true;
            self.save.published = true;
        }
    }

    /// Differences that last are not the network's: only a snapshot can tell.
    fn begin_anew_if_needed(&mut self, now: Now) {
        if self.cursors_are_void || !self.peers.needs_a_snapshot(now.instant) {
            return;
        }
        warn!("records differ from what their owners say there is, and go on to: a snapshot is asked for");
        self.begin_anew = true;
        self.cursors_are_void = true;
        self.session_cursor = None;
        self.saved_cursor = SessionCursor::default();
        self.save.peers = true;
    }

    pub(super) fn touch(&mut self, change: PeerChange) {
        if !change.is_empty() {
            self.dirty.services.extend(change.services);
            self.dirty.clusters.extend(change.clusters);
            self.save.peers = true;
        }
    }
}
