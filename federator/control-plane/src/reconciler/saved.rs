//! What the owner keeps on disk, and takes up again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use federation::{Gateway, GatewayAddress, Locality, ServiceId};
use federation_api::client::federation::SessionCursor;
use federation_api::federation::v1::Publish;
use federation_api::record::v1::Signed;
use federation_api::trust::v1::WatchResponse;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spiffe_identity::Bundle;
use tracing::{error, warn};

use super::{Effects, Reconciler};
use crate::state::{StateDirectory, StateError, json_bytes, sealed_bytes};
use crate::vips::SavedVips;

/// The state files' names.
pub mod files {
    /// Members, bundles and the deny-list.
    pub const TRUST: &str = "trust.bin";
    /// Other clusters' records.
    pub const PEERS: &str = "peers.bin";
    /// How far they were applied.
    pub const PEERS_CURSOR: &str = "peers.json";
    /// Own records.
    pub const PUBLISHED: &str = "published.bin";
    /// The own bundle as it was last published.
    pub const BUNDLE: &str = "bundle.json";
    /// Clusterset IPs, own gateways, when exports were first seen.
    pub const LOCAL: &str = "local.json";
}

/// What was on disk.
#[derive(Debug, Default)]
pub struct Restored {
    /// The trust state.
    pub trust: WatchResponse,
    /// Other clusters' records, to be verified again.
    pub peers: Vec<Signed>,
    /// How far they were applied.
    pub session_cursor: SessionCursor,
    /// A full state was applied once, and the records are all there.
    pub peers_synced: bool,
    /// When.
    pub applied_at: Option<SystemTime>,
    /// Own records.
    pub published: Vec<Signed>,
    /// Own gateways.
    pub gateways: Vec<Gateway>,
    /// Where own sidecars reach them, if they have to.
    pub egress_gateways: Vec<Gateway>,
    /// When exports were first seen.
    pub first_seen: BTreeMap<ServiceId, SystemTime>,
    /// Clusterset IPs.
    pub vips: SavedVips,
    /// The own bundle.
    pub bundle: SavedBundle,
}

#[derive(Debug, Default)]
pub(super) struct Unsaved {
    pub(super) local: bool,
    pub(super) trust: bool,
    pub(super) peers: bool,
    pub(super) published: bool,
    pub(super) bundle: bool,
}

/// The own bundle: its sequence must never be used for other roots.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SavedBundle {
    sequence: u64,
    /// DER in base64.
    roots: Vec<String>,
}

impl SavedBundle {
    fn of(bundle: &Bundle) -> Self {
        Self { sequence: bundle.sequence, roots: texts(&bundle.x509_authorities) }
    }
}

fn texts(roots: &[CertificateDer<'_>]) -> Vec<String> {
    roots.iter().map(|der| STANDARD.encode(der)).collect()
}

/// Higher than the one before, and than whatever was published in the past and forgotten: not below Unix seconds.
pub(super) fn next_bundle_sequence(before: u64, now: SystemTime) -> u64 {
    before.saturating_add(1).max(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SavedLocal {
    vips: SavedVips,
    gateways: Vec<SavedGateway>,
    egress_gateways: Vec<SavedGateway>,
    first_seen_unix_seconds: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SavedGateway {
    name: String,
    address: GatewayAddress,
    port: u16,
    locality: Locality,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SavedCursor {
    incarnation: String,
    revision: u64,
    namespaces: Vec<String>,
    applied_at_unix_ms: u64,
    /// A full state was applied.
    synced: bool,
    /// Of the records' file: with any other one the cursor would skip what that lacks.
    peers_digest: String,
}

impl Restored {
    /// Reads what there is. Records that are lost come again: other clusters' with a full snapshot, own ones by being
    /// signed anew.
    ///
    /// # Errors
    /// Another file is there and cannot be used: better to stop than to forget who is shut out, or the clusterset IPs.
    pub fn read(state: &StateDirectory) -> Result<Self, StateError> {
        let local: SavedLocal = state.read_json(files::LOCAL)?.unwrap_or_default();
        let (peers, cursor) = read_peers(state)?;
        let published = usable(state.read_message::<Publish>(files::PUBLISHED))?;
        if published.is_none() && !cursor.incarnation.is_empty() {
            warn!(file = %state.path(files::PUBLISHED).display(), "own records are not there: they are signed anew");
        }
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds.min(1 << 40));
        let first_seen = local.first_seen_unix_seconds.into_iter();
        let applied_at = UNIX_EPOCH + Duration::from_millis(cursor.applied_at_unix_ms.min(1 << 50));
        Ok(Self {
            trust: state.read_message(files::TRUST)?.unwrap_or_default(),
            peers,
            peers_synced: cursor.synced,
            applied_at: (cursor.applied_at_unix_ms > 0).then_some(applied_at),
            session_cursor: SessionCursor {
                incarnation: cursor.incarnation,
                revision: cursor.revision,
                namespaces: cursor.namespaces.iter().filter_map(|name| name.parse().ok()).collect(),
            },
            published: published.unwrap_or_default().records,
            gateways: local.gateways.into_iter().map(Gateway::from).collect(),
            egress_gateways: local.egress_gateways.into_iter().map(Gateway::from).collect(),
            first_seen: first_seen.filter_map(|(id, seconds)| Some((id.parse().ok()?, at(seconds)))).collect(),
            vips: local.vips,
            bundle: state.read_json(files::BUNDLE)?.unwrap_or_default(),
        })
    }

    /// The `spiffe_sequence` of the own roots: the one they were published with, or a higher one for other roots.
    #[must_use]
    pub fn bundle_sequence(&self, roots: &[CertificateDer<'_>], now: SystemTime) -> u64 {
        let saved = &self.bundle;
        if saved.sequence > 0 && saved.roots == texts(roots) {
            return saved.sequence;
        }
        next_bundle_sequence(saved.sequence, now)
    }
}

/// Other clusters' records, and the cursor if it is of just these.
fn read_peers(state: &StateDirectory) -> Result<(Vec<Signed>, SavedCursor), StateError> {
    let cursor: Option<SavedCursor> = usable(state.read_json(files::PEERS_CURSOR))?;
    let sum = state.read(files::PEERS)?.map(|bytes| digest_text(&bytes));
    let peers = usable(state.read_message::<Publish>(files::PEERS))?;
    if sum.is_none() && cursor.is_none() {
        return Ok(Default::default());
    }
    let cursor = cursor.filter(|cursor| peers.is_some() && sum.as_ref() == Some(&cursor.peers_digest));
    if cursor.is_none() {
        let file = state.path(files::PEERS);
        warn!(file = %file.display(), "other clusters' records are not all there: a full snapshot is asked for");
    }
    Ok((peers.unwrap_or_default().records, cursor.unwrap_or_default()))
}

/// A damaged file counts as missing.
fn usable<T>(read: Result<Option<T>, StateError>) -> Result<Option<T>, StateError> {
    match read {
        Err(error @ StateError::Content { .. }) => {
            warn!(%error, "a state file is not used");
            Ok(None)
        }
        read => read,
    }
}

fn digest_text(bytes: &[u8]) -> String {
    STANDARD.encode(digest(&SHA256, bytes))
}

impl From<SavedGateway> for Gateway {
    fn from(saved: SavedGateway) -> Self {
        let SavedGateway { name, address, port, locality } = saved;
        Self { name, address, port, locality, draining: false }
    }
}

impl Reconciler {
    /// Adds the files whose content may have changed.
    pub(super) fn save(&mut self, effects: &mut Effects) {
        let unsaved = std::mem::take(&mut self.save);
        if unsaved.local {
            add_json(effects, files::LOCAL, &self.saved_local());
        }
        if unsaved.bundle {
            add_json(effects, files::BUNDLE, &SavedBundle::of(&self.facts.bundle));
        }
        if unsaved.trust {
            effects.files.push((files::TRUST, sealed_bytes(&self.peers.trust().to_message())));
        }
        if unsaved.published
            && let Some(publications) = &self.publications
        {
            effects.files.push((files::PUBLISHED, sealed_bytes(&Publish { records: publications.envelopes() })));
        }
        if unsaved.peers {
            if let Some(cursor) = &effects.session_applied {
                self.saved_cursor.clone_from(cursor);
            }
            let bytes = sealed_bytes(&Publish { records: self.peers.envelopes() });
            let peers_digest = digest_text(&bytes);
            effects.files.push((files::PEERS, bytes));
            let cursor = &self.saved_cursor;
            let since_epoch = self.federator.last_applied.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let saved = SavedCursor {
                incarnation: cursor.incarnation.clone(),
                revision: cursor.revision,
                namespaces: cursor.namespaces.iter().map(ToString::to_string).collect(),
                applied_at_unix_ms: since_epoch.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX)),
                synced: self.peers_synced && self.publications.is_some(),
                peers_digest,
            };
            add_json(effects, files::PEERS_CURSOR, &saved);
        }
    }

    fn saved_local(&self) -> SavedLocal {
        let gateway = |gateway: &Gateway| SavedGateway {
            name: gateway.name.clone(),
            address: gateway.address.clone(),
            port: gateway.port,
            locality: gateway.locality.clone(),
        };
        let seconds = |at: &SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        SavedLocal {
            vips: self.vips.saved(),
            gateways: self.gateways.iter().map(gateway).collect(),
            egress_gateways: self.egress_gateways.iter().map(gateway).collect(),
            first_seen_unix_seconds: self.first_seen.iter().map(|(id, at)| (id.to_string(), seconds(at))).collect(),
        }
    }
}

fn add_json<T: Serialize>(effects: &mut Effects, name: &'static str, value: &T) {
    match json_bytes(value) {
        Ok(bytes) => effects.files.push((name, bytes)),
        Err(error) => error!(file = name, %error, "state cannot be written down"),
    }
}
