//! The name of a trust domain: whose roots answer for an identity.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest trust domain name, in bytes (SPIFFE-ID, section 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// A trust domain name such as `east.mesh.example`: 1 to 255 bytes of `[a-z0-9.-_]` (SPIFFE-ID, section 2.1).
///
/// Two trust domains are the same only when their names are equal byte by byte. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

/// Why a text is not a trust domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustDomainError {
    /// The name has no characters.
    #[error("the trust domain is empty")]
    Empty,
    /// The name is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("the trust domain has {0} bytes, more than 255")]
    TooLong(usize),
    /// The name holds a character outside `[a-z0-9.-_]`; upper case, ports, user information and percent-encoding end here.
    #[error("the trust domain has {0:?}, which is none of a-z, 0-9, '.', '-' and '_'")]
    Character(char),
}

impl TrustDomain {
    /// The name, as it stands after `spiffe://`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(name: &str) -> Result<Self, TrustDomainError> {
        if name.is_empty() {
            return Err(TrustDomainError::Empty);
        }
        if name.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(TrustDomainError::TooLong(name.len()));
        }
        match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
            Some(stranger) => Err(TrustDomainError::Character(stranger)),
            None => Ok(Self(name.into())),
        }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = TrustDomainError;

    fn try_from(name: String) -> Result<Self, TrustDomainError> {
        name.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(name: TrustDomain) -> Self {
        name.0.as_ref().into()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
