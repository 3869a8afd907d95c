//! The URL of a bundle endpoint: https, without user information.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest URL.
const MAX_BYTES: usize = 2048;
const SCHEME: &str = "https://";
const PORT: u16 = 443;

/// `https://host[:port][/path][?query]`; nothing else is ever fetched.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointUrl {
    /// A name, or an address without brackets.
    host: String,
    port: u16,
    /// With its leading `/`, the query behind it.
    target: String,
}

/// Why a text is not the URL of a bundle endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Longer than 2048 bytes.
    #[error("the URL has {0} bytes, more than 2048")]
    TooLong(usize),
    /// Another scheme than https.
    #[error("the URL does not start with \"https://\"")]
    Scheme,
    /// User information before the host.
    #[error("the URL has user information")]
    UserInformation,
    /// No host, or not the form of one.
    #[error("the URL's host is no name and no address")]
    Host,
    /// Not a port.
    #[error("the URL's port is none")]
    Port,
    /// A fragment, a space, a control character or something outside ASCII.
    #[error("the URL has {0:?}")]
    Character(char),
}

impl EndpointUrl {
    /// Name or address to connect to, and for `https_web` the name that the certificate must show.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query: the target of the request.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Where a `Location` of this URL leads: another https URL, or another path on the same server.
    pub(super) fn join(&self, location: &str) -> Result<Self, UrlError> {
        if location.starts_with('/') && !location.starts_with("//") {
            let target = target(location)?;
            return Ok(Self { target, ..self.clone() });
        }
        location.parse()
    }
}

fn target(text: &str) -> Result<String, UrlError> {
    if text.len() > MAX_BYTES {
        return Err(UrlError::TooLong(text.len()));
    }
    match text.chars().find(|character| !character.is_ascii_graphic() || *character == '#') {
        Some(character) => Err(UrlError::Character(character)),
        None if text.starts_with('/') => Ok(text.to_owned()),
        None => Ok(format!("/{text}")),
    }
}

/// Host and port of `host`, `host:port`, `[address]` or `[address]:port`.
fn authority(text: &str) -> Result<(String, u16), UrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or(UrlError::Host)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host)?;
            (address, rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some("") }))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_host = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(UrlError::Host);
    }
    let digits = |port: &&str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        None => PORT,
        Some(port) => Some(port).filter(digits).and_then(|port| port.parse().ok()).ok_or(UrlError::Port)?,
    };
    if port == 0 { Err(UrlError::Port) } else { Ok((host.to_ascii_lowercase(), port)) }
}

impl FromStr for EndpointUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > MAX_BYTES {
            return Err(UrlError::TooLong(text.len()));
        }
        let (scheme, rest) = text.split_at_checked(SCHEME.len()).ok_or(UrlError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(UrlError::Scheme);
        }
        let (before, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if before.contains('@') {
            return Err(UrlError::UserInformation);
        }
        let (host, port) = authority(before)?;
        Ok(Self { host, port, target: target(behind)? })
    }
}

impl TryFrom<String> for EndpointUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl From<EndpointUrl> for String {
    fn from(url: EndpointUrl) -> Self {
        url.to_string()
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{SCHEME}{open}{}{close}", self.host)?;
        if self.port != PORT {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.target)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
