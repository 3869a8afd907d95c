//! Reading an X.509 certificate strictly: one DER value with nothing behind it, each extension once and well formed, and no
//! critical extension that nobody here understands.

use std::time::{Duration, SystemTime};

use x509_parser::{
    extensions::{BasicConstraints, ExtendedKeyUsage, GeneralName, KeyUsage, SubjectAlternativeName},
    oid_registry::{
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME,
    },
    prelude::{FromDer, X509Certificate},
    x509::X509Version,
};

use crate::{IdError, SpiffeId};

/// Why bytes are not a certificate that can be judged at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not the DER of an X.509 version 3 certificate.
    #[error("not the DER of an X.509 version 3 certificate")]
    Malformed,
    /// Bytes follow the certificate.
    #[error("{0} bytes follow the certificate")]
    TrailingData(usize),
    /// An extension occurs twice (RFC 5280, section 4.2 forbids it).
    #[error("the extension {0} occurs twice")]
    DuplicateExtension(String),
    /// An extension's content does not parse, or has bytes behind it.
    #[error("the extension {0} is malformed")]
    MalformedExtension(String),
    /// A critical extension that is not understood here must be refused (RFC 5280, section 4.2).
    #[error("the critical extension {0} is not understood")]
    UnknownCriticalExtension(String),
}

/// How far in the past issuers of the mesh let a certificate's validity begin, for receivers whose clocks are slow.
pub const BACKDATE: Duration = Duration::from_secs(300);

/// When a certificate is valid; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first valid second.
    pub not_before: SystemTime,
    /// The last valid second.
    pub not_after: SystemTime,
}

impl Validity {
    /// Whether `now` lies within.
    pub fn contains(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after + Duration::from_secs(1)
    }

    /// When this part of its life is over, counted from when it was issued and not from its beginning, which issuers of
    /// the mesh put [`BACKDATE`] before. One that lives no longer than that counts from its beginning.
    pub fn after(&self, part: f64) -> SystemTime {
        let issued = self.not_before + BACKDATE;
        let issued = if issued < self.not_after { issued } else { self.not_before };
        let life = self.not_after.duration_since(issued).unwrap_or_default();
        issued + life.mul_f64(part.clamp(0.0, 1.0))
    }
}

/// The validity of a certificate, and nothing else about it.
///
/// # Errors
/// When `der` is not exactly one certificate.
pub fn validity(der: &[u8]) -> Result<Validity, CertificateError> {
    Ok(Extensions::validity(&parse(der)?))
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    if !rest.is_empty() {
        return Err(CertificateError::TrailingData(rest.len()));
    }
    if certificate.version() != X509Version::V3 {
        return Err(CertificateError::Malformed);
    }
    Ok(certificate)
}

/// The extensions that SPIFFE has rules about, each with its criticality.
#[derive(Default)]
pub(crate) struct Extensions<'a> {
    pub(crate) basic_constraints: Option<BasicConstraints>,
    pub(crate) key_usage: Option<(bool, KeyUsage)>,
    pub(crate) extended_key_usage: Option<ExtendedKeyUsage<'a>>,
    names: Vec<GeneralName<'a>>,
}

/// What the Subject Alternative Name says in URIs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UriNames {
    None,
    One(Result<SpiffeId, IdError>),
    Several(usize),
}

impl<'a> Extensions<'a> {
    /// Reads them; a signing certificate may also carry critical name constraints, which path building enforces.
    pub(crate) fn read(certificate: &'a X509Certificate<'a>, signing: bool) -> Result<Self, CertificateError> {
        let mut read = Self::default();
        let mut seen = Vec::new();
        for extension in certificate.extensions() {
            let oid = &extension.oid;
            if seen.contains(&oid) {
                return Err(CertificateError::DuplicateExtension(oid.to_id_string()));
            }
            seen.push(oid);
            let malformed = || CertificateError::MalformedExtension(oid.to_id_string());
            if *oid == OID_X509_EXT_BASIC_CONSTRAINTS {
                read.basic_constraints = Some(whole(extension.value).ok_or_else(malformed)?);
            } else if *oid == OID_X509_EXT_KEY_USAGE {
                read.key_usage = Some((extension.critical, whole(extension.value).ok_or_else(malformed)?));
            } else if *oid == OID_X509_EXT_EXTENDED_KEY_USAGE {
                read.extended_key_usage = Some(whole(extension.value).ok_or_else(malformed)?);
            } else if *oid == OID_X509_EXT_SUBJECT_ALT_NAME {
                let names: SubjectAlternativeName<'_> = whole(extension.value).ok_or_else(malformed)?;
                if names.general_names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
                    return Err(malformed());
                }
                read.names = names.general_names;
            } else if extension.critical && !(signing && *oid == OID_X509_EXT_NAME_CONSTRAINTS) {
                return Err(CertificateError::UnknownCriticalExtension(oid.to_id_string()));
            }
        }
        Ok(read)
    }

    pub(crate) fn uri_names(&self) -> UriNames {
        let mut uris = self.names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.count()) {
            (None, _) => UriNames::None,
            (Some(uri), 0) => UriNames::One(uri.parse()),
            (Some(_), more) => UriNames::Several(more + 1),
        }
    }

    pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Validity {
        let bounds = certificate.validity();
        Validity {
            not_before: system_time(bounds.not_before.timestamp()),
            not_after: system_time(bounds.not_after.timestamp()),
        }
    }
}

/// One value with nothing behind it.
fn whole<'a, T, E>(bytes: &'a [u8]) -> Option<T>
where
    T: FromDer<'a, E>,
{
    match T::from_der(bytes) {
        Ok(([], value)) => Some(value),
        _ => None,
    }
}

/// Seconds since 1970 as a time; certificates may lie before 1970.
fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
