//! SPIFFE IDs: `spiffe://<trust domain><path>`.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{PlaneRole, TrustDomain, TrustDomainError};

/// The longest SPIFFE ID, in bytes (SPIFFE-ID, section 2.3).
pub const MAX_ID_BYTES: usize = 2048;

const SCHEME: &str = "spiffe://";

/// A SPIFFE ID (SPIFFE-ID, section 2). Cheap to clone; equal only when equal byte by byte.
///
/// The path may be empty (`spiffe://east.mesh.example`): such an ID names the trust domain itself, and no workload.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Empty, or `/`-led segments.
    path: Arc<str>,
}

/// Why a text is not a SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Longer than [`MAX_ID_BYTES`].
    #[error("the SPIFFE ID has {0} bytes, more than 2048")]
    TooLong(usize),
    /// Does not start with `spiffe://`, in lower case.
    #[error("the ID does not start with \"spiffe://\"")]
    Scheme,
    /// The part after the scheme is not a trust domain.
    #[error(transparent)]
    TrustDomain(#[from] TrustDomainError),
    /// Two slashes follow each other.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// The path ends with a slash.
    #[error("the path ends with a slash")]
    TrailingSlash,
    /// A segment is `.` or `..`.
    #[error("the path has a segment {0:?}")]
    DotSegment(String),
    /// A segment holds a character outside `[a-zA-Z0-9.-_]`: queries, fragments and percent-encoding end here.
    #[error("the path has {0:?}, which is none of a-z, A-Z, 0-9, '.', '-' and '_'")]
    Character(char),
}

impl SpiffeId {
    /// The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// When a name is no single path segment.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, IdError> {
        Self::from_segments(trust_domain, &["ns", namespace, "sa", service_account])
    }

    /// The identity of a cluster's control-plane in the federation's own trust domain:
    /// `spiffe://<federation domain>/cluster/<cluster>/control-plane`.
    ///
    /// # Errors
    /// When a name is no single path segment.
    pub fn control_plane(federation: &TrustDomain, cluster: &str) -> Result<Self, IdError> {
        Self::from_segments(federation, &["cluster", cluster, "control-plane"])
    }

    /// The identity of a service of the federation, such as `trust-bundle`: `spiffe://<federation domain>/service/<name>`.
    ///
    /// # Errors
    /// When a name is no single path segment.
    pub fn service(federation: &TrustDomain, name: &str) -> Result<Self, IdError> {
        Self::from_segments(federation, &["service", name])
    }

    /// The identity of an operator: `spiffe://<federation domain>/operator/<name>`.
    ///
    /// # Errors
    /// When a name is no single path segment.
    pub fn operator(federation: &TrustDomain, name: &str) -> Result<Self, IdError> {
        Self::from_segments(federation, &["operator", name])
    }

    /// The identity of the trust domain itself, without a path: what a root certificate may carry.
    pub fn of_trust_domain(trust_domain: &TrustDomain) -> Self {
        Self { trust_domain: trust_domain.clone(), path: "".into() }
    }

    /// An identity from its path's segments. A slash inside a segment is refused, so no caller can smuggle one in.
    ///
    /// # Errors
    /// When a segment is empty, `.`, `..` or has a character outside `[a-zA-Z0-9.-_]`, or the whole is too long.
    pub fn from_segments(trust_domain: &TrustDomain, segments: &[&str]) -> Result<Self, IdError> {
        let mut path = String::new();
        for segment in segments {
            check_segment(segment)?;
            path.push('/');
            path.push_str(segment);
        }
        let length = SCHEME.len() + trust_domain.as_str().len() + path.len();
        if length > MAX_ID_BYTES {
            return Err(IdError::TooLong(length));
        }
        Ok(Self { trust_domain: trust_domain.clone(), path: path.into() })
    }

    /// The trust domain whose roots answer for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path, empty or with its leading `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path's segments, without slashes.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').skip(1)
    }

    /// What the path says about a role in the federation plane. It says nothing about who vouches for it: an identity of
    /// any trust domain may carry such a path, so compare [`trust_domain`](Self::trust_domain) with the federation's own,
    /// or ask [`role_in`](Self::role_in).
    pub fn role(&self) -> Option<PlaneRole<'_>> {
        PlaneRole::of_path(&self.path)
    }

    /// The role in the plane of *this* federation; `None` for every identity of another trust domain.
    pub fn role_in(&self, federation: &TrustDomain) -> Option<PlaneRole<'_>> {
        (self.trust_domain == *federation).then(|| self.role()).flatten()
    }

    /// Namespace and service account, when the path is `/ns/<namespace>/sa/<service account>`.
    pub fn as_workload(&self) -> Option<(&str, &str)> {
        let mut segments = self.segments();
        match (segments.next()?, segments.next()?, segments.next()?, segments.next()?, segments.next()) {
            ("ns", namespace, "sa", service_account, None) => Some((namespace, service_account)),
            _ => None,
        }
    }
}

fn check_segment(segment: &str) -> Result<(), IdError> {
    match segment {
        "" => Err(IdError::EmptySegment),
        "." | ".." => Err(IdError::DotSegment(segment.into())),
        _ => match segment.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_')) {
            Some(stranger) => Err(IdError::Character(stranger)),
            None => Ok(()),
        },
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(id: &str) -> Result<Self, IdError> {
        if id.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong(id.len()));
        }
        let rest = id.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (trust_domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = trust_domain.parse()?;
        if path.ends_with('/') {
            return Err(IdError::TrailingSlash);
        }
        path.split('/').skip(1).try_for_each(check_segment)?;
        Ok(Self { trust_domain, path: path.into() })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = IdError;

    fn try_from(id: String) -> Result<Self, IdError> {
        id.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
