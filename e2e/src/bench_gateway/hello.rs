//! A genuine ClientHello, made once.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use tokio_rustls::TlsConnector;

use super::SERVER_NAME;

/// Its bytes: TLS 1.3 with a hybrid key share, as sidecars send it.
pub(super) fn client_hello() -> anyhow::Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(SERVER_NAME)?)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).context("making a hello")?;
    Ok(bytes)
}

/// What a client asks of the backend, after its hello.
#[derive(Clone, Copy)]
pub(super) enum Command {
    /// So many bytes.
    Send(u64),
    /// Whatever it gets, back.
    Echo,
}

impl Command {
    /// One letter and a number.
    pub(super) fn encode(self) -> [u8; 9] {
        let (letter, number) = match self {
            Self::Send(count) => (b'S', count),
            Self::Echo => (b'E', 0),
        };
        let mut bytes = [letter; 9];
        bytes[1..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; 9]) -> Option<Self> {
        let [letter, number @ ..] = bytes;
        match letter {
            b'S' => Some(Self::Send(u64::from_be_bytes(number))),
            b'E' => Some(Self::Echo),
            _ => None,
        }
    }
}

/// Hello and command in one.
pub(super) fn opening(hello: &[u8], command: Command) -> Vec<u8> {
    [hello, &command.encode()].concat()
}

/// Where the load goes to, and what it says first.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) opening: Opening,
}

/// How a connection begins.
#[derive(Clone)]
pub(super) enum Opening {
    /// A hello that nobody answers.
    Raw(Arc<[u8]>),
    /// A handshake.
    Tls(TlsConnector),
}
