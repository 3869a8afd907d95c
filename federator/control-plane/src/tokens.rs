//! Service-account tokens where there is no Kubernetes: signed here, checked here.
//!
//! ES256 JWTs (RFC 7519, RFC 7518 section 3.4) of the shape that Kubernetes projects into pods: `sub`
//! `system:serviceaccount:<namespace>:<service account>`, audience `isthmus`, and the claim `kubernetes.io`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use federation::Namespace;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use svid_issuer::{AttestError, Attestor, Workload};

use crate::state::{StateDirectory, StateError};

/// The state file of the key.
const FILE: &str = "service-account-tokens.key";
/// What tokens are for.
pub(crate) const AUDIENCE: &str = "isthmus";
/// Clocks of one host: hardly any leeway.
const LEEWAY_SECONDS: u64 = 5;
/// The longest token that is looked at.
pub(crate) const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The longest life of a token.
pub const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// The file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key.
    #[error("the key of service-account tokens cannot be used: {0}")]
    Key(String),
    /// A name that Kubernetes would refuse.
    #[error("{0}")]
    Name(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    iat: u64,
    exp: u64,
    #[serde(rename = "kubernetes.io", default, skip_serializing_if = "Option::is_none")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Named>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Named {
    name: String,
}

/// Signs and checks tokens.
pub struct TokenKey {
    issuer: String,
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl TokenKey {
    /// The key on disk, made when there is none. Blocks on the disk.
    ///
    /// # Errors
    /// [`TokenKeyError`]
    pub fn open_or_create(state: &StateDirectory, trust_domain: &str) -> Result<Self, TokenKeyError> {
        let unusable =
            |error: &dyn std::fmt::Display| TokenKeyError::Key(format!("{}: {error}", state.path(FILE).display()));
        let der = match state.read(FILE)? {
            Some(der) => der,
            None => {
                let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
                let made = made.map_err(|error| unusable(&error))?;
                state.write(FILE, made.as_ref())?;
                made.as_ref().to_vec()
            }
        };
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).map_err(|error| unusable(&error))?;
        // An uncompressed point: 4, x, y.
        let point = pair.public_key().as_ref();
        let coordinate = |range| point.get(range).map(|bytes| URL_SAFE_NO_PAD.encode(bytes)).unwrap_or_default();
        let verifying = DecodingKey::from_ec_components(&coordinate(1..33), &coordinate(33..65));
        Ok(Self {
            issuer: format!("https://isthmus.{trust_domain}"),
            signing: EncodingKey::from_ec_der(&der),
            verifying: verifying.map_err(|error| unusable(&error))?,
        })
    }

    /// A token for a service account.
    ///
    /// # Errors
    /// [`TokenKeyError::Name`], or the key fails.
    pub fn sign(
        &self,
        namespace: &str,
        service_account: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, TokenKeyError> {
        check_names(namespace, service_account).map_err(TokenKeyError::Name)?;
        let iat = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: format!("system:serviceaccount:{namespace}:{service_account}"),
            aud: vec![AUDIENCE.to_owned()],
            iat,
            exp: iat + lifetime.min(MAX_LIFETIME).as_secs(),
            kubernetes: Some(Kubernetes {
                namespace: namespace.to_owned(),
                serviceaccount: Named { name: service_account.to_owned() },
                pod: None,
            }),
        };
        let header = Header::new(Algorithm::ES256);
        jsonwebtoken::encode(&header, &claims, &self.signing).map_err(|error| TokenKeyError::Key(error.to_string()))
    }

    /// The workload a token stands for.
    ///
    /// # Errors
    /// [`AttestError::Refused`]
    pub fn check(&self, token: &str) -> Result<Workload, AttestError> {
        let refused = |why: String| AttestError::Refused(why);
        if token.len() > MAX_TOKEN_BYTES {
            return Err(refused(format!("it has more than {MAX_TOKEN_BYTES} bytes")));
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY_SECONDS;
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation);
        let claims = claims.map_err(|error| refused(error.to_string()))?.claims;
        let mut subject = claims.sub.splitn(4, ':');
        let (Some("system"), Some("serviceaccount"), Some(namespace), Some(service_account)) =
            (subject.next(), subject.next(), subject.next(), subject.next())
        else {
            return Err(refused("its subject is no service account".to_owned()));
        };
        check_names(namespace, service_account).map_err(refused)?;
        let bound = claims.kubernetes;
        if bound.as_ref().is_some_and(|it| it.namespace != namespace || it.serviceaccount.name != service_account) {
            return Err(refused("its claims contradict each other".to_owned()));
        }
        Ok(Workload {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: bound.and_then(|bound| bound.pod).map(|pod| pod.name),
        })
    }
}

impl Attestor for TokenKey {
    async fn attest(&self, token: &str) -> Result<Workload, AttestError> {
        self.check(token)
    }
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TokenKey").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// A namespace is a label, a service account a subdomain.
fn check_names(namespace: &str, service_account: &str) -> Result<(), String> {
    Namespace::parse(namespace).map_err(|error| format!("namespace: {error}"))?;
    let valid = service_account.len() <= 253 && service_account.split('.').all(|it| Namespace::parse(it).is_ok());
    if valid { Ok(()) } else { Err(format!("serviceAccount: {service_account:?} is no RFC 1123 subdomain")) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_token_names_its_workload_until_it_expires_and_only_here() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let key = TokenKey::open_or_create(&state, "east.mesh.example").unwrap();
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let token = key.sign("shop", "cart", hour, now).unwrap();
        let again = TokenKey::open_or_create(&state, "east.mesh.example").unwrap();
        let workload = again.check(&token).unwrap();
        assert_eq!((workload.namespace.as_str(), workload.service_account.as_str()), ("shop", "cart"));

        let expired = key.sign("shop", "cart", hour, now - hour * 2).unwrap();
        assert!(matches!(key.check(&expired), Err(AttestError::Refused(_))));
        let elsewhere = TokenKey::open_or_create(&state, "west.mesh.example").unwrap();
        assert!(elsewhere.check(&token).is_err());
        let other = tempfile::tempdir().unwrap();
        let stranger = StateDirectory::open(other.path()).unwrap();
        stranger.write(FILE, b"damaged").unwrap();
        let refused = TokenKey::open_or_create(&stranger, "east.mesh.example").err().unwrap().to_string();
        assert!(refused.contains(stranger.path(FILE).to_str().unwrap()), "{refused}");
        std::fs::remove_file(stranger.path(FILE)).unwrap();
        let stranger = TokenKey::open_or_create(&stranger, "east.mesh.example").unwrap();
        assert!(key.check(&stranger.sign("shop", "cart", hour, now).unwrap()).is_err());
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), token.split('.').nth(1).unwrap());
        assert!(key.check(&none).is_err());
        assert!(key.sign("shop:x", "cart", hour, now).is_err());
    }
}
