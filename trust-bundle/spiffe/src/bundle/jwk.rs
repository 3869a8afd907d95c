//! A root's public key as JWK parameters (RFC 7518, section 6), both to write them and to compare what a peer wrote.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use x509_parser::{
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION},
    prelude::X509Certificate,
    public_key,
};

/// The smallest and largest RSA moduli that TLS stacks verify, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a key does not fit into a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// Neither EC P-256, EC P-384 nor RSA.
    #[error("the certificate's key is neither EC P-256, EC P-384 nor RSA")]
    Kind,
    /// The point is compressed or has another length than its curve's.
    #[error("the certificate's EC point is not an uncompressed one")]
    Point,
    /// The RSA modulus is too short or too long.
    #[error("the certificate's RSA key has {0} bits, outside 2048 to 8192")]
    RsaBits(usize),
    /// A parameter of the JWK differs from the certificate's key, or is absent.
    #[error("the key's {0:?} does not match its certificate")]
    Mismatch(&'static str),
}

/// A public key's JWK parameters.
pub(crate) struct PublicKey {
    parameters: Vec<(&'static str, String)>,
}

impl PublicKey {
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Result<Self, JwkError> {
        let key = certificate.public_key();
        let algorithm = &key.algorithm;
        if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
            match key.parsed() {
                Ok(public_key::PublicKey::RSA(rsa)) => Self::rsa(rsa.modulus, rsa.exponent),
                _ => Err(JwkError::Kind),
            }
        } else if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve =
                algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok()).ok_or(JwkError::Kind)?;
            let point = key.subject_public_key.data.as_ref();
            if curve == OID_EC_P256 {
                Self::ec("P-256", 32, point)
            } else if curve == OID_NIST_EC_P384 {
                Self::ec("P-384", 48, point)
            } else {
                Err(JwkError::Kind)
            }
        } else {
            Err(JwkError::Kind)
        }
    }

    fn ec(curve: &str, width: usize, point: &[u8]) -> Result<Self, JwkError> {
        match point {
            [4, coordinates @ ..] if coordinates.len() == 2 * width => {
                let (x, y) = coordinates.split_at(width);
                Ok(Self {
                    parameters: vec![
                        ("kty", "EC".into()),
                        ("crv", curve.into()),
                        ("x", URL_SAFE_NO_PAD.encode(x)),
                        ("y", URL_SAFE_NO_PAD.encode(y)),
                    ],
                })
            }
            _ => Err(JwkError::Point),
        }
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, JwkError> {
        let (modulus, exponent) = (without_leading_zeroes(modulus), without_leading_zeroes(exponent));
        let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err(JwkError::RsaBits(bits));
        }
        Ok(Self {
            parameters: vec![
                ("kty", "RSA".into()),
                ("n", URL_SAFE_NO_PAD.encode(modulus)),
                ("e", URL_SAFE_NO_PAD.encode(exponent)),
            ],
        })
    }

    /// Whether a peer's JWK speaks of this key.
    pub(super) fn check(&self, jwk: &Map<String, Value>) -> Result<(), JwkError> {
        match self.parameters.iter().find(|(name, value)| jwk.get(*name).and_then(Value::as_str) != Some(value)) {
            Some((name, _)) => Err(JwkError::Mismatch(name)),
            None => Ok(()),
        }
    }

    pub(super) fn write(&self, jwk: &mut Map<String, Value>) {
        jwk.extend(self.parameters.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())));
    }
}

fn without_leading_zeroes(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number.get(start..).unwrap_or_default()
}
