//! One fetch of a bundle, from the first request to the parsed answer.

use std::time::{Duration, Instant};

use super::{Endpoint, EndpointUrl, UrlError};
use crate::{Bundle, BundleError, MAX_BUNDLE_BYTES, TrustDomain};

/// How long a fetch may take altogether, redirects and the last byte included: a server that drips bytes gains nothing.
pub const FETCH_DEADLINE: Duration = Duration::from_secs(10);

/// How many redirects are followed.
pub const MAX_REDIRECTS: usize = 3;

/// A fetch under way. Its owner sends `GET` for [`url`](Self::url) with `Accept: application/json` and no `Accept-Encoding`,
/// to the server that [`Endpoint::server`] names and to no other, and hands over what comes back.
#[derive(Clone, Debug)]
pub struct Fetch {
    trust_domain: TrustDomain,
    url: EndpointUrl,
    redirects: usize,
    deadline: Instant,
    body: Option<Vec<u8>>,
}

/// What counts of a response's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// The status code.
    pub status: u16,
    /// The header `Location`.
    pub location: Option<&'a str>,
    /// The header `Content-Encoding`.
    pub content_encoding: Option<&'a str>,
    /// The header `Content-Length`.
    pub content_length: Option<u64>,
}

/// What a response's head leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Drop this response and send the request anew: the URL is another one now.
    Redirect,
    /// Hand the body over, piece by piece.
    Body,
}

/// Why a fetch brings no bundle. The last good one stays in force, and the next poll tries again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The deadline has passed.
    #[error("no whole bundle within 10 s")]
    TooSlow,
    /// A permanent redirect: the operator decides where a bundle comes from.
    #[error("a permanent redirect ({0}); only temporary ones are followed")]
    PermanentRedirect(u16),
    /// A redirect to nowhere, or to something that is not https.
    #[error("a redirect that is not followed: {0}")]
    Redirect(#[from] UrlError),
    /// A redirect that does not say where to.
    #[error("a redirect without a location")]
    NoLocation,
    /// More than [`MAX_REDIRECTS`].
    #[error("more than 3 redirects")]
    TooManyRedirects,
    /// Any other status than 200.
    #[error("the endpoint answers with status {0}")]
    Status(u16),
    /// The body is compressed, which was not asked for and may hide any size.
    #[error("the body is encoded as {0:?}")]
    Encoding(String),
    /// The body is larger than a bundle may be.
    #[error("the body has more than 1 MiB")]
    TooLarge,
    /// No response, or one whose head was not handed over.
    #[error("there is no body")]
    NoBody,
    /// What came is not a bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl Fetch {
    /// A fetch that begins now.
    pub fn new(endpoint: &Endpoint, now: Instant) -> Self {
        Self {
            trust_domain: endpoint.trust_domain.clone(),
            url: endpoint.url.clone(),
            redirects: 0,
            deadline: now + FETCH_DEADLINE,
            body: None,
        }
    }

    /// What to ask for next.
    pub fn url(&self) -> &EndpointUrl {
        &self.url
    }

    /// When to give up, whatever has come until then.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The head of a response to the request for [`url`](Self::url).
    ///
    /// # Errors
    /// When this fetch brings no bundle.
    pub fn head(&mut self, head: Head<'_>, now: Instant) -> Result<Next, FetchError> {
        self.in_time(now)?;
        match head.status {
            200 => {}
            302 | 303 | 307 => return self.redirect(head.location),
            status @ (300 | 301 | 308) => return Err(FetchError::PermanentRedirect(status)),
            status => return Err(FetchError::Status(status)),
        }
        if let Some(encoding) = head.content_encoding
            && !encoding.trim().eq_ignore_ascii_case("identity")
        {
            return Err(FetchError::Encoding(encoding.chars().take(64).collect()));
        }
        if head.content_length.is_some_and(|length| length > MAX_BUNDLE_BYTES as u64) {
            return Err(FetchError::TooLarge);
        }
        self.body = Some(Vec::new());
        Ok(Next::Body)
    }

    fn redirect(&mut self, location: Option<&str>) -> Result<Next, FetchError> {
        if self.redirects == MAX_REDIRECTS {
            return Err(FetchError::TooManyRedirects);
        }
        self.redirects += 1;
        self.url = self.url.join(location.ok_or(FetchError::NoLocation)?)?;
        Ok(Next::Redirect)
    }

    /// A piece of the body. No more of it is kept than a bundle may have.
    ///
    /// # Errors
    /// When the body is too large or too late: drop the connection then.
    pub fn piece(&mut self, piece: &[u8], now: Instant) -> Result<(), FetchError> {
        self.in_time(now)?;
        let body = self.body.as_mut().ok_or(FetchError::NoBody)?;
        if body.len() + piece.len() > MAX_BUNDLE_BYTES {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(piece);
        Ok(())
    }

    /// The body is complete. Offer the bundle to a [`BundleSet`](crate::BundleSet), which refuses what goes back.
    ///
    /// # Errors
    /// When it came too late or is no bundle.
    pub fn finish(self, now: Instant) -> Result<Bundle, FetchError> {
        self.in_time(now)?;
        let body = self.body.ok_or(FetchError::NoBody)?;
        Ok(Bundle::from_jwks(self.trust_domain, &body)?)
    }

    fn in_time(&self, now: Instant) -> Result<(), FetchError> {
        if now < self.deadline { Ok(()) } else { Err(FetchError::TooSlow) }
    }
}
