//! A trust domain's bundle: its roots, as a JWK Set (SPIFFE Trust Domain and Bundle, section 4).

mod json;
mod jwk;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};

pub(crate) use self::jwk::PublicKey;
pub use self::{json::JsonError, jwk::JwkError};
use crate::{AuthorityError, TrustDomain, certificate::parse, check_authority};

/// The largest bundle that is read at all.
pub const MAX_BUNDLE_BYTES: usize = 1 << 20;

/// The most roots one trust domain may have. Path building tries each, so more of them is a denial of service.
pub const MAX_AUTHORITIES: usize = 16;

/// How often to poll a bundle that does not say (SPIFFE Federation, section 5.1).
pub const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(300);

/// A hint outside these bounds is brought to the nearer one: neither a storm of polls nor roots that are never renewed.
const REFRESH_HINT_SECONDS: (u64, u64) = (15, 3600);

/// The roots that may sign X.509-SVIDs of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose roots these are. Configured by whoever fetches the bundle, never read from it.
    pub trust_domain: TrustDomain,
    /// At most [`MAX_AUTHORITIES`] roots, each accepted by [`check_authority`]. Empty means: reject every SVID of the trust domain.
    pub x509_authorities: Vec<CertificateDer<'static>>,
    /// Grows with each change; 0 when the publisher does not say. Whether it may be lower than the last one seen is up to the caller (no).
    pub sequence: u64,
    /// How often to poll, 15 s to 1 h; `None` when the publisher does not say ([`DEFAULT_REFRESH_HINT`] then).
    pub refresh_hint: Option<Duration>,
}

/// Why a bundle is refused as a whole. The last good one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Larger than [`MAX_BUNDLE_BYTES`].
    #[error("the bundle has {0} bytes, more than 1 MiB")]
    TooLarge(usize),
    /// Not JSON, or an object has a key twice.
    #[error("the bundle is not usable JSON: {0}")]
    Json(#[from] JsonError),
    /// The top level is not an object.
    #[error("the bundle is not a JSON object")]
    NotAnObject,
    /// `keys` is missing, which is not the same as empty.
    #[error("the bundle has no \"keys\"")]
    MissingKeys,
    /// A field has another type than the standard gives it.
    #[error("{0} is not {1}")]
    Type(&'static str, &'static str),
    /// A key is not usable.
    #[error("keys[{index}]: {source}")]
    Key {
        /// Its place in `keys`, from 0.
        index: usize,
        /// What is wrong with it.
        source: KeyError,
    },
    /// More than [`MAX_AUTHORITIES`] roots.
    #[error("the bundle has {0} x509-svid keys, more than 16")]
    TooManyAuthorities(usize),
}

/// Why one key of a bundle is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An entry of `keys` is not an object.
    #[error("not a JSON object")]
    NotAnObject,
    /// An x509-svid key must not have `kid`.
    #[error("an x509-svid key must not have \"kid\"")]
    UnexpectedKeyId,
    /// A jwt-svid key must have `kid`.
    #[error("a jwt-svid key must have \"kid\"")]
    MissingKeyId,
    /// `x5c` is not an array of exactly one string.
    #[error("\"x5c\" must hold exactly one certificate")]
    CertificateCount,
    /// `x5c` is not base64 (the padded one of RFC 4648, section 4, as RFC 7517 asks).
    #[error("\"x5c\" is not base64")]
    Base64,
    /// The certificate may not sign for this trust domain.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The key beside the certificate is another one.
    #[error(transparent)]
    Jwk(#[from] JwkError),
}

impl Bundle {
    /// Reads a JWK Set as the bundle of `trust_domain`.
    ///
    /// Keys whose `use` or `kty` is missing or unknown are passed over, as the standard asks. Everything else that is wrong
    /// refuses the bundle as a whole, so that nobody ends up with half of a trust domain's roots.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn from_jwks(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, BundleError> {
        if json.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLarge(json.len()));
        }
        let Value::Object(document) = json::parse(json)? else { return Err(BundleError::NotAnObject) };
        let keys = document.get("keys").ok_or(BundleError::MissingKeys)?;
        let keys = keys.as_array().ok_or(BundleError::Type("keys", "an array"))?;
        let mut x509_authorities = Vec::new();
        let mut found = 0;
        for (index, key) in keys.iter().enumerate() {
            let authority = read_key(&trust_domain, key).map_err(|source| BundleError::Key { index, source })?;
            found += usize::from(authority.is_some());
            if found > MAX_AUTHORITIES {
                return Err(BundleError::TooManyAuthorities(found));
            }
            x509_authorities.extend(authority.filter(|authority| !x509_authorities.contains(authority)));
        }
        Ok(Self {
            trust_domain,
            x509_authorities,
            sequence: sequence(&document)?,
            refresh_hint: refresh_hint(&document)?,
        })
    }

    /// Writes the bundle as a JWK Set that the strictest reader accepts: only x509-svid keys, only the members that the
    /// standard names, each key's parameters beside its certificate. An authority that [`check_authority`] would refuse for
    /// its key cannot be expressed and is left out.
    pub fn to_jwks(&self) -> String {
        let keys: Vec<Value> = self.x509_authorities.iter().filter_map(|der| write_key(der)).collect();
        let mut document = Map::new();
        document.insert("keys".into(), keys.into());
        document.insert("spiffe_sequence".into(), self.sequence.into());
        let hint = self.refresh_hint.unwrap_or(DEFAULT_REFRESH_HINT);
        document.insert("spiffe_refresh_hint".into(), hint.as_secs().into());
        Value::Object(document).to_string()
    }
}

/// The root in a key; `None` for a key that is none of ours to judge.
fn read_key(trust_domain: &TrustDomain, key: &Value) -> Result<Option<CertificateDer<'static>>, KeyError> {
    let key = key.as_object().ok_or(KeyError::NotAnObject)?;
    let text = |name| key.get(name).and_then(Value::as_str);
    match (text("use"), text("kty")) {
        (Some("x509-svid"), Some("EC" | "RSA")) => read_x509_key(trust_domain, key).map(Some),
        (Some("jwt-svid"), Some("EC" | "RSA")) if text("kid").is_none_or(str::is_empty) => Err(KeyError::MissingKeyId),
        _ => Ok(None),
    }
}

fn read_x509_key(trust_domain: &TrustDomain, key: &Map<String, Value>) -> Result<CertificateDer<'static>, KeyError> {
    if key.contains_key("kid") {
        return Err(KeyError::UnexpectedKeyId);
    }
    let encoded = match key.get("x5c").and_then(Value::as_array).map(Vec::as_slice) {
        Some([Value::String(encoded)]) => encoded,
        _ => return Err(KeyError::CertificateCount),
    };
    let der = STANDARD.decode(encoded).map_err(|_| KeyError::Base64)?;
    check_authority(&der, trust_domain)?;
    let certificate = parse(&der).map_err(AuthorityError::from)?;
    PublicKey::of(&certificate)?.check(key)?;
    Ok(CertificateDer::from(der))
}

fn write_key(der: &CertificateDer<'_>) -> Option<Value> {
    let certificate = parse(der).ok()?;
    let mut key = Map::new();
    key.insert("use".into(), "x509-svid".into());
    PublicKey::of(&certificate).ok()?.write(&mut key);
    key.insert("x5c".into(), json!([STANDARD.encode(der)]));
    Some(Value::Object(key))
}

fn sequence(document: &Map<String, Value>) -> Result<u64, BundleError> {
    match document.get("spiffe_sequence") {
        None => Ok(0),
        Some(value) => value.as_u64().ok_or(BundleError::Type("spiffe_sequence", "an unsigned 64-bit number")),
    }
}

fn refresh_hint(document: &Map<String, Value>) -> Result<Option<Duration>, BundleError> {
    let Some(value) = document.get("spiffe_refresh_hint") else { return Ok(None) };
    let seconds = match (value.as_u64(), value.as_i64()) {
        (Some(seconds), _) => seconds,
        (None, Some(_negative)) => 0,
        (None, None) => return Err(BundleError::Type("spiffe_refresh_hint", "a whole number of seconds")),
    };
    let (least, most) = REFRESH_HINT_SECONDS;
    Ok(Some(Duration::from_secs(seconds.clamp(least, most))))
}
