//! Sealing a root's private key: encrypted on disk under a key that lies elsewhere.

use std::{fmt, fs, io, path::Path, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use spiffe_identity::TrustDomain;

const KEY_BYTES: usize = 32;

/// What a sealed key's file starts with; a hexadecimal nonce and ciphertext follow.
const HEADER: &str = "isthmus sealed key 1\n";

/// The key that seals a root's key: 32 bytes, from a Secret, a removable disk, or wherever the root's own disk is not.
#[derive(Clone)]
pub struct SealingKey(Arc<LessSafeKey>);

/// Why there is no sealing key, or nothing can be unsealed with it.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read.
    #[error("the sealing key cannot be read: {0}")]
    File(#[from] io::Error),
    /// Not 64 hexadecimal digits.
    #[error("a sealing key is 64 hexadecimal digits")]
    Form,
    /// The sealed text was made with another sealing key, for another trust domain, or was changed.
    #[error("the sealed key was sealed with another sealing key, for another trust domain, or was changed")]
    Wrong,
    /// The system's randomness failed.
    #[error("the system's randomness failed")]
    Randomness,
}

impl SealingKey {
    /// A key of 32 bytes from the system's randomness, and its text for [`from_text`](Self::from_text).
    ///
    /// # Errors
    /// When the randomness fails.
    pub fn generate() -> Result<(Self, String), SealError> {
        let mut bytes = [0; KEY_BYTES];
        rand::fill(&mut bytes).map_err(|_| SealError::Randomness)?;
        Ok((Self::new(&bytes)?, to_hex(&bytes)))
    }

    /// Reads 64 hexadecimal digits; white space around them is passed over.
    ///
    /// # Errors
    /// When the text is something else.
    pub fn from_text(text: &str) -> Result<Self, SealError> {
        match from_hex(text.trim()) {
            Some(bytes) if bytes.len() == KEY_BYTES => Self::new(&bytes),
            _ => Err(SealError::Form),
        }
    }

    /// [`from_text`](Self::from_text) of a file.
    ///
    /// # Errors
    /// As there, or when the file cannot be read.
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        Self::from_text(&fs::read_to_string(path)?)
    }

    fn new(bytes: &[u8]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| SealError::Form)?;
        Ok(Self(Arc::new(LessSafeKey::new(key))))
    }

    /// The trust domain is bound in, so that one cluster's sealed key is no other's.
    pub(crate) fn seal(&self, trust_domain: &TrustDomain, secret: &str) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError::Randomness)?;
        let mut text = secret.as_bytes().to_vec();
        let aad = Aad::from(trust_domain.as_str());
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .map_err(|_| SealError::Wrong)?;
        Ok(format!("{HEADER}{}{}\n", to_hex(&nonce), to_hex(&text)))
    }

    pub(crate) fn unseal(&self, trust_domain: &TrustDomain, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let hex = sealed.strip_prefix(HEADER.as_bytes()).and_then(|rest| std::str::from_utf8(rest).ok());
        let bytes = hex.and_then(|hex| from_hex(hex.trim())).ok_or(SealError::Wrong)?;
        let (nonce, rest) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Wrong)?;
        let mut text = rest.to_vec();
        let aad = Aad::from(trust_domain.as_str());
        let opened = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut text);
        Ok(opened.map_err(|_| SealError::Wrong)?.to_vec())
    }
}

/// Whether a key's file is sealed.
pub(crate) fn is_sealed(text: &[u8]) -> bool {
    text.starts_with(HEADER.as_bytes())
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| if let [high, low] = pair { Some(digit(high)? << 4 | digit(low)?) } else { None }).collect()
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey")
    }
}
