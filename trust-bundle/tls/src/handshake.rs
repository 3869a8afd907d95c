//! TLS over a stream one already has, with a deadline, for everything that is not RPC.

use std::{error::Error, io, sync::Arc, time::Duration};

use rustls::{CertificateError, ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::PeerError;

/// Why a handshake did not end in a connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took longer than its deadline.
    #[error("the TLS handshake took longer than {0:?}")]
    TimedOut(Duration),
    /// The peer's certificate was refused here.
    #[error("{0}")]
    Peer(#[source] PeerError),
    /// TLS failed otherwise; a peer that refuses *our* certificate shows as a received alert.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] rustls::Error),
    /// The stream failed or ended.
    #[error("the connection failed during the TLS handshake: {0}")]
    Stream(#[source] io::Error),
}

impl HandshakeError {
    fn of(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => match peer_error(tls) {
                Some(peer) => Self::Peer(peer.clone()),
                None => Self::Tls(tls.clone()),
            },
            None => Self::Stream(error),
        }
    }
}

fn peer_error(error: &rustls::Error) -> Option<&PeerError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            let inner: &(dyn Error + 'static) = &*other.0;
            inner.downcast_ref()
        }
        _ => None,
    }
}

/// Opens TLS on a connected stream. `server_name` becomes the SNI (an address sends none); whom to expect stands in the
/// configuration.
///
/// # Errors
/// When the handshake fails or takes longer than `deadline`.
pub async fn connect<S>(
    stream: S,
    config: &Arc<ClientConfig>,
    server_name: ServerName<'static>,
    deadline: Duration,
) -> Result<client::TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Box::pin(TlsConnector::from(config.clone()).connect(server_name, stream));
    match timeout(deadline, handshake).await {
        Ok(finished) => finished.map_err(HandshakeError::of),
        Err(_) => Err(HandshakeError::TimedOut(deadline)),
    }
}

/// Accepts TLS on a stream.
///
/// # Errors
/// When the handshake fails or takes longer than `deadline`.
pub async fn accept<S>(
    stream: S,
    config: &Arc<ServerConfig>,
    deadline: Duration,
) -> Result<server::TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Box::pin(TlsAcceptor::from(config.clone()).accept(stream));
    match timeout(deadline, handshake).await {
        Ok(finished) => finished.map_err(HandshakeError::of),
        Err(_) => Err(HandshakeError::TimedOut(deadline)),
    }
}
