//! Who is at the other end of a connection.

use std::sync::Arc;

use rustls::{ClientConnection, CommonState, ServerConnection};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe_identity::{SpiffeId, check_leaf};

use crate::Purpose;

/// A verified peer, with what it takes to judge it again when roots or the deny-list change.
#[derive(Clone, Debug)]
pub struct Peer {
    id: SpiffeId,
    chain: Arc<[CertificateDer<'static>]>,
    purpose: Purpose,
    verified_at: UnixTime,
}

impl Peer {
    /// The client of a connection whose handshake has just ended; `None` when it showed no certificate.
    pub fn of_server(connection: &ServerConnection) -> Option<Self> {
        Self::of(connection, Purpose::Client)
    }

    /// The server of a connection whose handshake has just ended.
    pub fn of_client(connection: &ClientConnection) -> Option<Self> {
        Self::of(connection, Purpose::Server)
    }

    fn of(connection: &CommonState, purpose: Purpose) -> Option<Self> {
        let chain = connection.peer_certificates()?;
        let id = check_leaf(chain.first()?).ok()?;
        Some(Self { id, chain: chain.into(), purpose, verified_at: UnixTime::now() })
    }

    /// Its identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The chain it showed, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    pub(crate) fn verified_at(&self) -> UnixTime {
        self.verified_at
    }
}

/// The identity of a connection's peer, once the handshake has verified it; `None` without a certificate.
pub fn peer_id(connection: &CommonState) -> Option<SpiffeId> {
    check_leaf(connection.peer_certificates()?.first()?).ok()
}
