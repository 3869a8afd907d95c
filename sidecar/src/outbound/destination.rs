//! Where a request of the local application wants to go.

use std::fmt;
use std::net::IpAddr;

use federation::MeshHost;
use http::Uri;
use http::uri::Authority;

use crate::outbound::refusal::Refusal;

/// A service's host name, or one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// `<name>.<namespace>.svc.clusterset.local`, or `….svc.cluster.local`.
    Host(MeshHost),
    /// A clusterset IP, or a cluster IP.
    Address(IpAddr),
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(formatter),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

/// Where a request wants to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    /// The service.
    pub(crate) name: Name,
    /// Its port.
    pub(crate) port: u16,
}

/// The port that an authority names, if any; an empty one is none (RFC 3986, section 3.2.3).
pub(crate) fn port_of(authority: &Authority) -> Result<Option<u16>, Refusal> {
    let text = authority.as_str();
    let after_user = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    let Some(port) = after_user.strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':')) else {
        return Ok(None);
    };
    if port.is_empty() {
        return Ok(None);
    }
    let number = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    number.map(Some).ok_or_else(|| Refusal::Port(port.chars().take(32).collect()))
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Host(host) => write!(formatter, "{host}:{}", self.port),
            Name::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]:{}", self.port),
            Name::Address(address) => write!(formatter, "{address}:{}", self.port),
        }
    }
}

impl Destination {
    /// From a host and a port.
    pub(crate) fn new(host: &str, port: u16) -> Result<Self, Refusal> {
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let name = match literal.parse::<IpAddr>() {
            Ok(address) => Name::Address(address.to_canonical()),
            Err(_) => Name::Host(host.parse().map_err(|_| not_in_clusterset(host))?),
        };
        Ok(Self { name, port })
    }

    /// From an authority; `default_port` where it names none.
    pub(crate) fn from_authority(authority: &Authority, default_port: Option<u16>) -> Result<Self, Refusal> {
        if authority.as_str().contains('@') {
            return Err(not_in_clusterset(authority.as_str()));
        }
        let port = port_of(authority)?.or(default_port).ok_or(Refusal::NoAuthority)?;
        Self::new(authority.host(), port)
    }

    /// From a request's URI, as a proxy is given it.
    pub(crate) fn from_uri(uri: &Uri) -> Result<Self, Refusal> {
        let authority = uri.authority().ok_or(Refusal::NoAuthority)?;
        match uri.scheme_str() {
            Some("http") | None => Self::from_authority(authority, Some(80)),
            Some("https") => Err(Refusal::Https),
            Some(other) => Err(Refusal::Scheme(other.chars().take(32).collect())),
        }
    }
}

fn not_in_clusterset(host: &str) -> Refusal {
    Refusal::NotInClusterset(host.chars().take(253).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn uris_of_services_and_of_nothing_else_are_destinations() {
        let destination = |uri: &str| Destination::from_uri(&uri.parse().unwrap()).map(|found| found.to_string());
        assert_eq!(
            destination("http://Cart.Shop.svc.clusterset.local:7070/x").unwrap(),
            "cart.shop.svc.clusterset.local:7070"
        );
        assert_eq!(destination("http://cart.shop.svc.clusterset.local").unwrap(), "cart.shop.svc.clusterset.local:80");
        assert_eq!(destination("http://241.0.0.7:81/").unwrap(), "241.0.0.7:81");
        assert_eq!(destination("http://[fd00::1]:81/").unwrap(), "[fd00::1]:81");
        assert_eq!(destination("http://a.b.svc.cluster.local/").unwrap(), "a.b.svc.cluster.local:80");
        assert_eq!(destination("/path").unwrap_err(), Refusal::NoAuthority);
        assert_eq!(destination("https://cart.shop.svc.clusterset.local/").unwrap_err(), Refusal::Https);
        assert_eq!(
            destination("ftp://cart.shop.svc.clusterset.local/").unwrap_err(),
            Refusal::Scheme("ftp".to_owned())
        );
        assert_eq!(destination("http://241.0.0.7:/").unwrap(), "241.0.0.7:80");
        assert_eq!(destination("http://241.0.0.7:0081/").unwrap(), "241.0.0.7:81");
        assert_eq!(destination("http://[::ffff:241.0.0.7]:81/").unwrap(), "241.0.0.7:81");
        assert_eq!(destination("http://241.0.0.7:99999/").unwrap_err(), Refusal::Port("99999".to_owned()));
        assert_eq!(destination("http://[fd00::1]:65536/").unwrap_err(), Refusal::Port("65536".to_owned()));
        for foreign in ["http://example.com/", "http://a.b.svc/", "http://u@a.b.svc.clusterset.local/"] {
            assert!(matches!(destination(foreign).unwrap_err(), Refusal::NotInClusterset(_)), "{foreign}");
        }
    }
}
