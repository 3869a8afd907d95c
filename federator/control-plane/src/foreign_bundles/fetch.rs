//! One fetch over the network; what to ask, whom to believe and what to accept is `spiffe_identity::federation`'s to say.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, LOCATION};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use mesh_tls::handshake::{self, HandshakeError};
use mesh_tls::{ExpectedPeer, TrustStore, pem};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use spiffe_identity::federation::{Endpoint, EndpointUrl, FETCH_DEADLINE, Fetch, FetchError, Head, Next, Server};
use spiffe_identity::{Bundle, BundleSet, OfferError};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The longest response head.
const MAX_HEAD: usize = 16 * 1024;

/// The one protocol that is spoken.
const ALPN: &[u8] = b"http/1.1";

/// Why a poll brought nothing new; the last good bundle stays.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// The host has no such name, or refuses.
    #[error("{host}: {source}")]
    Connect {
        /// Name and port.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not the right server, or does not speak TLS.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Its HTTP is broken, or it left.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// A request that cannot be written.
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    /// What it answers is no bundle.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is a bundle that must not take the last one's place.
    #[error(transparent)]
    Refused(OfferError),
}

/// Whom to believe as a web server.
#[derive(Clone, Debug)]
pub struct WebRoots(Option<Arc<ClientConfig>>);

impl WebRoots {
    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// The authorities of a PEM file, or the system's.
    ///
    /// # Errors
    /// The file cannot be read, or there is no authority at all.
    pub fn open(file: Option<&Path>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        match file {
            Some(file) => {
                let shown = || file.display().to_string();
                let text = std::fs::read(file).with_context(shown)?;
                for root in pem::certificates_from_pem(&text).with_context(shown)? {
                    roots.add(root).with_context(shown)?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                anyhow::ensure!(!roots.is_empty(), "the system has no certificate authorities: {:?}", found.errors);
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self(Some(Arc::new(config))))
    }
}

/// Fetches the bundle of an endpoint. `held` says whom an `https_spiffe` server must be vouched for by.
///
/// # Errors
/// [`PollError`]
pub async fn fetch(endpoint: &Endpoint, held: &BundleSet, web: &WebRoots) -> Result<Bundle, PollError> {
    let fetch = Fetch::new(endpoint, Instant::now());
    let deadline = fetch.deadline();
    match tokio::time::timeout_at(deadline.into(), exchange(fetch, endpoint, held, web)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(FetchError::TooSlow.into()),
    }
}

async fn exchange(
    mut fetch: Fetch,
    endpoint: &Endpoint,
    held: &BundleSet,
    web: &WebRoots,
) -> Result<Bundle, PollError> {
    let config = client_config(endpoint, held, web);
    loop {
        // The connection ends with this set.
        let mut driver = JoinSet::new();
        let response = get(fetch.url(), &config, &mut driver).await?;
        let headers = response.headers();
        let head = Head {
            status: response.status().as_u16(),
            location: text(headers, &LOCATION),
            content_encoding: text(headers, &CONTENT_ENCODING),
            content_length: text(headers, &CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        };
        match fetch.head(head, Instant::now())? {
            Next::Redirect => {}
            Next::Body => return body(fetch, response).await,
        }
    }
}

async fn body(mut fetch: Fetch, response: Response<Incoming>) -> Result<Bundle, PollError> {
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Some(piece) = frame?.data_ref() {
            fetch.piece(piece, Instant::now())?;
        }
    }
    Ok(fetch.finish(Instant::now())?)
}

fn client_config(endpoint: &Endpoint, held: &BundleSet, web: &WebRoots) -> Option<Arc<ClientConfig>> {
    match endpoint.server(held) {
        Server::Web => web.0.clone(),
        Server::Spiffe { id, bundle } => {
            let trust = TrustStore::new();
            trust.insert(bundle.clone());
            Some(mesh_tls::client_config(None, &trust, ExpectedPeer::exactly(id.clone()), &[ALPN]))
        }
    }
}

async fn get(
    url: &EndpointUrl,
    config: &Option<Arc<ClientConfig>>,
    driver: &mut JoinSet<()>,
) -> Result<Response<Incoming>, PollError> {
    let (host, port) = (url.host(), url.port());
    let failed = |source| PollError::Connect { host: format!("{host}:{port}"), source };
    let invalid = |text: &str| failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, text));
    let config = config.as_ref().ok_or_else(|| invalid("no web authorities are configured"))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| invalid(&error.to_string()))?;
    let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
    // The fetch's own deadline ends before this one.
    let stream = handshake::connect(stream, config, name, FETCH_DEADLINE).await?;
    let (mut sender, connection) = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    driver.spawn(async move {
        // Its error reaches whoever waits for the response.
        let _ = connection.await;
    });
    let bracketed = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let request = Request::get(url.target())
        .header(HOST, bracketed)
        .header(ACCEPT, "application/json")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"))
}
