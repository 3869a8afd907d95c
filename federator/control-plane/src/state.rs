//! The state directory: everything that a restart needs with the rest of the world gone.
//!
//! | file | what |
//! | --- | --- |
//! | `ca.crt`, `ca.key` | the cluster's root and its key |
//! | `root.crt` | the roots alone: the pins of the cluster's proxies |
//! | `bundle.json` | the own bundle's sequence, and the roots that it was published with |
//! | `service-account-tokens.key` | signs service-account tokens |
//! | `membership.json` | the membership, its keys and certificate, the federation's addresses and pins |
//! | `trust.bin` | members, bundles and the deny-list as last applied |
//! | `peers.bin`, `peers.json` | other clusters' records, and how far they were applied |
//! | `published.bin` | own records as last signed |
//! | `local.json` | clusterset IPs, own gateways, when exports were first seen |

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use mesh_runtime::{read_if_present, write_atomically};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No state file is larger: what is, was not written here.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Secrets are among the files, so nobody else reads any.
const FILE_MODE: u32 = 0o600;
/// For what proxies of other users read.
const PUBLIC_MODE: u32 = 0o644;
/// Begins a file that has a SHA-256 digest and then its message.
const SEAL: &[u8] = b"sealed-1";

/// A state file that cannot be used. It is never overwritten: an operator decides what becomes of it.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The content is not what this program writes.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// The directory.
#[derive(Clone, Debug)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// Opens the directory; makes it, for this user alone, where it is missing.
    ///
    /// # Errors
    /// [`StateError::File`]
    pub fn open(path: &Path) -> Result<Self, StateError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StateError::File { path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    /// The path of a file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file's bytes, if it is there.
    ///
    /// # Errors
    /// [`StateError::File`]
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        read_if_present(&path, MAX_FILE_BYTES).map_err(|source| StateError::File { path, source })
    }

    /// A JSON file's value, if it is there.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| StateError::Content { path: self.path(name), what: error.to_string() })
    }

    /// The message of a file that [`sealed_bytes`] made, if it is there.
    ///
    /// # Errors
    /// [`StateError`]; also for a file that is empty or lacks a part.
    pub fn read_message<M: Message + Default>(&self, name: &str) -> Result<Option<M>, StateError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let Some(content) = unsealed(&bytes) else {
            let what = "the content does not match its digest: damaged, or cut".to_owned();
            return Err(StateError::Content { path: self.path(name), what });
        };
        let parsed = M::decode(content);
        parsed.map(Some).map_err(|error| StateError::Content { path: self.path(name), what: error.to_string() })
    }

    /// Replaces a file, all or nothing. Blocks on the disk.
    ///
    /// # Errors
    /// [`StateError::File`]
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.write_mode(name, bytes, FILE_MODE)
    }

    /// [`write`](Self::write) for a file that others may read.
    ///
    /// # Errors
    /// As there.
    pub fn write_public(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.write_mode(name, bytes, PUBLIC_MODE)
    }

    /// Removes a file that may be gone already. Blocks on the disk.
    ///
    /// # Errors
    /// [`StateError::File`]
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::File { path, source }),
            _ => Ok(()),
        }
    }

    fn write_mode(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), StateError> {
        let path = self.path(name);
        write_atomically(&path, bytes, mode).map_err(|source| StateError::File { path, source })
    }
}

/// A message's bytes behind their digest, for [`StateDirectory::write`]: a cut between two fields, or an empty file, is a
/// valid message otherwise.
#[must_use]
pub fn sealed_bytes(message: &impl Message) -> Vec<u8> {
    let content = message.encode_to_vec();
    [SEAL, digest(&SHA256, &content).as_ref(), &content].concat()
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, content) = bytes.strip_prefix(SEAL)?.split_at_checked(SHA256.output_len())?;
    (digest(&SHA256, content).as_ref() == sum).then_some(content)
}

/// A file's content as JSON, for [`StateDirectory::write`].
///
/// # Errors
/// The value has a map with keys that are no text.
pub fn json_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec_pretty(value).map(|mut bytes| {
        bytes.push(b'\n');
        bytes
    })
}
