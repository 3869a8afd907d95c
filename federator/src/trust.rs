//! Following `trust.v1`: who is a member, kept on disk so that the service starts without trust-bundle.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use federation_api::client::Reconnect;
use federation_api::client::trust::{self, TrustCursor, TrustEvent};
use federation_api::trust::v1::WatchResponse;
use mesh_runtime::{read_if_present, write_atomically};
use mesh_tls::{TrustStore, pem};
use prost::Message;
use spiffe_identity::{Bundle, TrustDomain};
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{error, info, warn};

use crate::members::Members;

/// The most bytes that the last good state may have.
const MAX_STATE_BYTES: u64 = 64 * 1024 * 1024;

/// Keeps the members equal to what trust-bundle says, and the file equal to the members.
#[derive(Debug)]
pub struct TrustFollower {
    file: PathBuf,
    members: watch::Sender<Arc<Members>>,
}

impl TrustFollower {
    /// Starts with what `nobody` has become by the last good state in `directory`, if there is one that can be read.
    #[must_use]
    pub fn start(directory: &Path, nobody: Members) -> (Self, watch::Receiver<Arc<Members>>) {
        let file = directory.join("trust.last-good");
        let mut members = nobody;
        match read_if_present(&file, MAX_STATE_BYTES) {
            Ok(Some(bytes)) => match WatchResponse::decode(bytes.as_slice()) {
                Ok(state) => members.apply(&state),
                Err(error) => {
                    error!(file = %file.display(), %error, "last good trust state is unreadable: starting without")
                }
            },
            Ok(None) => {}
            Err(error) => {
                error!(file = %file.display(), %error, "last good trust state is unreadable: starting without")
            }
        }
        let (members, receiver) = watch::channel(Arc::new(members));
        (Self { file, members }, receiver)
    }

    /// Follows until dropped, as this replica.
    pub async fn follow(self, channel: Channel, replica: String, roots: &FederationRoots) {
        // The cursor is not kept over restarts: one full state at the start is cheap, and repairs a damaged file.
        let (acks, mut events) = trust::watch_as(channel, replica, TrustCursor::default(), Reconnect::default());
        while let Some(event) = events.recv().await {
            match event {
                TrustEvent::Connected => info!("following trust-bundle"),
                TrustEvent::Disconnected { reason, retry_in } => {
                    warn!(%reason, ?retry_in, "lost trust-bundle: the last good members stay");
                }
                TrustEvent::Update(update) => {
                    // Acknowledged means believed: what is signed below a new root is taken from then on.
                    roots.take(&update.federation_roots);
                    self.members.send_modify(|members| Arc::make_mut(members).apply(&update));
                    self.write().await;
                    acks.applied(update.cursor(), Vec::new(), 0);
                }
            }
        }
    }

    async fn write(&self) {
        let (file, bytes) = (self.file.clone(), self.members.borrow().to_response().encode_to_vec());
        let written = tokio::task::spawn_blocking(move || write_atomically(&file, &bytes, 0o600)).await;
        if let Ok(Err(error)) = written {
            error!(file = %self.file.display(), %error, "last good trust state not written");
        }
    }
}

/// The roots of the federation's own authority, as trust-bundle tells them: in force at once, and written down.
#[derive(Debug)]
pub struct FederationRoots {
    trust: TrustStore,
    trust_domain: TrustDomain,
    file: PathBuf,
    changed: watch::Sender<()>,
}

impl FederationRoots {
    /// Keeps the roots of `trust_domain` in `trust` and in `file`.
    #[must_use]
    pub fn new(trust: TrustStore, trust_domain: TrustDomain, file: PathBuf) -> Self {
        Self { trust, trust_domain, file, changed: watch::Sender::new(()) }
    }

    /// Learns when they are others: a certificate that was made to last may be below one that goes.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes roots (DER) that differ from those in force; none at all changes nothing.
    pub fn take(&self, roots: &[Vec<u8>]) {
        let x509_authorities: Vec<_> = roots.iter().cloned().map(Into::into).collect();
        let known = self.trust.bundle(&self.trust_domain).map(|bundle| bundle.x509_authorities);
        if roots.is_empty() || known.as_ref() == Some(&x509_authorities) {
            return;
        }
        info!(roots = roots.len(), "the federation has other roots");
        let text = pem::certificates_to_pem(&x509_authorities);
        let trust_domain = self.trust_domain.clone();
        self.trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
        if let Err(error) = write_atomically(&self.file, text.as_bytes(), 0o644) {
            error!(file = %self.file.display(), %error, "the federation's roots are not written: a restart has the old ones");
        }
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn other_roots_are_believed_written_down_and_told_of_once() {
        let directory = tempfile::tempdir().unwrap();
        let (trust, trust_domain): (_, TrustDomain) = (TrustStore::new(), "mesh.example".parse().unwrap());
        let file = directory.path().join("federation-root.crt");
        let roots = FederationRoots::new(trust.clone(), trust_domain.clone(), file.clone());
        let mut changed = roots.changed();
        let told = [vec![0x30, 0x00], vec![0x30, 0x01, 0x00]];
        roots.take(&told);
        assert!(changed.has_changed().unwrap());
        changed.borrow_and_update();
        let believed = trust.bundle(&trust_domain).unwrap().x509_authorities;
        assert_eq!(believed.iter().map(|root| root.to_vec()).collect::<Vec<_>>(), told);
        assert_eq!(pem::certificates_from_pem(&std::fs::read(&file).unwrap()).unwrap(), believed);
        // The same again, and a delta that is about something else.
        roots.take(&told);
        roots.take(&[]);
        assert!(!changed.has_changed().unwrap());
        assert_eq!(trust.bundle(&trust_domain).unwrap().x509_authorities, believed);
    }
}
