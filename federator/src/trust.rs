//! Following `trust.v1`: who is a member, kept on disk so that the service starts without trust-bundle.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use federation_api::client::Reconnect;
use federation_api::client::trust::{self, TrustCursor, TrustEvent};
use federation_api::trust::v1::WatchResponse;
use mesh_runtime::{read_if_present, write_atomically};
use prost::Message;
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{error, info, warn};

use crate::credentials::Credentials;
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
    pub async fn follow(self, channel: Channel, replica: String, credentials: &Credentials) {
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
                    credentials.take_roots(&update.federation_roots);
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
