//! The keys of the chain of trust, and what each of them may sign.
//!
//! Every signature is Ed25519 (RFC 8032) over a [`Purpose`]'s context, one zero byte, and the message's exact bytes. A key
//! type signs only what its place in the chain allows, so a signature for the wrong purpose does not compile.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use federation::{ClusterName, FederationDomain, RecordKey};
use prost::Message as _;

use crate::payload::Payload;
use crate::record::v1::{self as wire, Signed};
use crate::unix;

/// Bytes of an Ed25519 public key or seed.
pub const KEY_BYTES: usize = 32;

/// What a signature says; it is void for anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A [`wire::Delegation`] under the membership root.
    Delegation,
    /// A [`wire::PublishKeyGrant`] under the token key, or the publish key before it.
    PublishKeyGrant,
    /// A [`wire::Statement`] under a publish key.
    Record,
    /// A [`wire::DenyList`] under the membership root.
    DenyList,
}

impl Purpose {
    /// The string that stands before the message.
    #[must_use]
    pub fn context(self) -> &'static str {
        match self {
            Self::Delegation => "isthmus.delegation.v1",
            Self::PublishKeyGrant => "isthmus.publish-key-grant.v1",
            Self::Record => "isthmus.record.v1",
            Self::DenyList => "isthmus.deny-list.v1",
        }
    }

    fn bytes(self, message: &[u8]) -> Vec<u8> {
        [self.context().as_bytes(), &[0], message].concat()
    }
}

/// A key that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes.
    #[error("an Ed25519 key has {KEY_BYTES} bytes, not {0}")]
    Length(usize),
    /// No PEM block of the expected kind.
    #[error("no PEM block {0:?}")]
    Pem(&'static str),
    /// Not the DER of an Ed25519 key.
    #[error("not an Ed25519 key: {0}")]
    Rejected(String),
}

/// A statement that would contradict itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a record {key} cannot carry {payload}")]
pub struct SignError {
    key: RecordKey,
    payload: &'static str,
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

/// DER of a SubjectPublicKeyInfo up to the key's bytes (RFC 8410).
const PUBLIC_KEY_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKey {
    /// A key from its 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::Length`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::Length(bytes.len()))
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// As a PEM file, `PUBLIC KEY` (RFC 8410), which openssl reads too.
    #[must_use]
    pub fn to_pem(&self) -> String {
        encode_pem("PUBLIC KEY", &[&PUBLIC_KEY_PREFIX[..], &self.0].concat())
    }

    /// From a PEM file.
    ///
    /// # Errors
    /// [`KeyError`] when it holds no Ed25519 public key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = decode_pem("PUBLIC KEY", pem)?;
        let bytes = der
            .strip_prefix(&PUBLIC_KEY_PREFIX)
            .ok_or_else(|| KeyError::Rejected("another algorithm, or damaged".to_owned()))?;
        Self::from_bytes(bytes)
    }

    /// Whether the envelope was signed by this key for this purpose.
    #[must_use]
    pub fn verifies(&self, purpose: Purpose, signed: &Signed) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&purpose.bytes(&signed.message), &signed.signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

macro_rules! key {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        pub struct $type(Ed25519KeyPair);

        impl $type {
            /// A new key.
            ///
            /// # Errors
            /// [`KeyError::Rejected`] when the system gives no randomness.
            pub fn generate() -> Result<Self, KeyError> {
                Ed25519KeyPair::generate().map(Self).map_err(|error| KeyError::Rejected(error.to_string()))
            }

            /// From PKCS#8, DER (RFC 8410).
            ///
            /// # Errors
            /// [`KeyError::Rejected`] when it is no Ed25519 key.
            pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
                Ed25519KeyPair::from_pkcs8(der).map(Self).map_err(|error| KeyError::Rejected(error.to_string()))
            }

            /// As PKCS#8, DER: a secret.
            ///
            /// # Errors
            /// [`KeyError::Rejected`] when the library cannot.
            pub fn to_pkcs8(&self) -> Result<Vec<u8>, KeyError> {
                let document = self.0.to_pkcs8v1().map_err(|error| KeyError::Rejected(error.to_string()))?;
                Ok(document.as_ref().to_vec())
            }

            /// From a PEM file, `PRIVATE KEY`.
            ///
            /// # Errors
            /// [`KeyError`] when it holds no Ed25519 key.
            pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
                Self::from_pkcs8(&decode_pem("PRIVATE KEY", pem)?)
            }

            /// As a PEM file, `PRIVATE KEY`: a secret.
            ///
            /// # Errors
            /// As [`Self::to_pkcs8`].
            pub fn to_pem(&self) -> Result<String, KeyError> {
                Ok(encode_pem("PRIVATE KEY", &self.to_pkcs8()?))
            }

            /// The public half.
            #[must_use]
            pub fn public(&self) -> PublicKey {
                let mut bytes = [0; KEY_BYTES];
                bytes.copy_from_slice(self.0.public_key().as_ref());
                PublicKey(bytes)
            }

            fn sign(&self, purpose: Purpose, message: Vec<u8>) -> Signed {
                let signature = self.0.sign(&purpose.bytes(&message)).as_ref().to_vec();
                Signed { message: message.into(), signature: signature.into() }
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($type), "({})"), self.public())
            }
        }
    };
}

key!(
    /// The operator's key, kept offline: says who may become a member, and who is shut out.
    MembershipRoot
);
key!(
    /// The key inside a join token: names the first publish key, once.
    TokenKey
);
key!(
    /// A member's key: signs its records, and the grant of the key after it.
    PublishKey
);

impl MembershipRoot {
    /// Signs a delegation.
    #[must_use]
    pub fn delegate(&self, delegation: &wire::Delegation) -> Signed {
        self.sign(Purpose::Delegation, delegation.encode_to_vec())
    }

    /// Signs a deny-list.
    #[must_use]
    pub fn deny(&self, list: &wire::DenyList) -> Signed {
        self.sign(Purpose::DenyList, list.encode_to_vec())
    }
}

impl TokenKey {
    /// From its seed, 32 bytes.
    ///
    /// # Errors
    /// [`KeyError`] when it has another length.
    pub fn from_seed(seed: &[u8]) -> Result<Self, KeyError> {
        if seed.len() != KEY_BYTES {
            return Err(KeyError::Length(seed.len()));
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        pair.map(Self).map_err(|error| KeyError::Rejected(error.to_string()))
    }

    /// Its seed: a secret.
    ///
    /// # Errors
    /// [`KeyError::Rejected`] when the library cannot.
    pub fn seed(&self) -> Result<Vec<u8>, KeyError> {
        use aws_lc_rs::encoding::{AsBigEndian as _, Curve25519SeedBin};
        let rejected = |_| KeyError::Rejected("no seed".to_owned());
        let seed: Curve25519SeedBin<'_> = self.0.seed().and_then(|seed| seed.as_be_bytes()).map_err(rejected)?;
        Ok(seed.as_ref().to_vec())
    }

    /// Signs the first grant.
    #[must_use]
    pub fn grant(&self, grant: &wire::PublishKeyGrant) -> Signed {
        self.sign(Purpose::PublishKeyGrant, grant.encode_to_vec())
    }
}

impl PublishKey {
    /// Signs the grant of the key that replaces this one.
    #[must_use]
    pub fn grant(&self, grant: &wire::PublishKeyGrant) -> Signed {
        self.sign(Purpose::PublishKeyGrant, grant.encode_to_vec())
    }

    /// Signs a statement as it is. [`Speaker::sign`] makes well-formed ones.
    #[must_use]
    pub fn sign_statement(&self, statement: &wire::Statement) -> Signed {
        self.sign(Purpose::Record, statement.encode_to_vec())
    }
}

/// A member that makes statements.
#[derive(Debug)]
pub struct Speaker {
    /// The federation.
    pub federation: FederationDomain,
    /// The cluster that speaks.
    pub cluster: ClusterName,
    /// Its membership's generation.
    pub generation: u64,
    /// Its publish key.
    pub key: PublishKey,
}

impl Speaker {
    /// A signed record. `sequence` comes from the cluster's [`SequenceClock`].
    ///
    /// # Errors
    /// [`SignError`] when the payload is not of the key's kind, or about something else.
    pub fn sign(
        &self,
        sequence: u64,
        issued: SystemTime,
        key: &RecordKey,
        payload: &Payload,
    ) -> Result<Signed, SignError> {
        if !payload.agrees_with(key) || matches!(payload, Payload::Unknown) {
            return Err(SignError { key: key.clone(), payload: payload.kind() });
        }
        Ok(self.key.sign_statement(&wire::Statement {
            federation: self.federation.to_string(),
            cluster: self.cluster.to_string(),
            generation: self.generation,
            sequence,
            key: key.to_string(),
            issued_at_ms: unix::milliseconds(issued),
            payload: payload.to_wire(),
        }))
    }
}

/// A cluster's sequence numbers: `max(previous + 1, Unix microseconds)`, so that they grow over restarts even when the
/// last one was lost, and over a clock that steps back when it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceClock {
    last: u64,
}

impl SequenceClock {
    /// Goes on after the last number used; 0 at first. The caller persists [`Self::last`] before it publishes.
    #[must_use]
    pub fn after(last: u64) -> Self {
        Self { last }
    }

    /// The next number.
    pub fn next(&mut self, now: SystemTime) -> u64 {
        self.last = self.last.saturating_add(1).max(unix::microseconds(now));
        self.last
    }

    /// The last number given out.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }
}

fn encode_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn decode_pem(label: &'static str, pem: &str) -> Result<Vec<u8>, KeyError> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let (_, rest) = pem.split_once(&begin).ok_or(KeyError::Pem(label))?;
    let (body, _) = rest.split_once(&end).ok_or(KeyError::Pem(label))?;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).map_err(|_| KeyError::Pem(label))
}
