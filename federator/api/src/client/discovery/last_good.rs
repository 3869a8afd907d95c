//! The last good state on disk.
//!
//! The file is a line that names the format, the SHA-256 of the rest, and one protobuf message of the resources. It is
//! replaced as a whole by renaming, so a crash leaves the old one or the new one.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use prost::Message;

use super::Shared;
use crate::discovery::v1::Resource;

const FORMAT: &[u8] = b"isthmus discovery state 1\n";
const DIGEST_BYTES: usize = 32;
/// A larger file is not this crate's.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// Changes are gathered for so long before they are written.
const WRITE_DELAY: Duration = Duration::from_millis(200);
/// After a failed write.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// The proxy's own user only.
const MODE: u32 = 0o600;

#[derive(Clone, PartialEq, Message)]
struct LastGood {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resource>,
}

/// Why there is no last good state.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a state file of this version")]
    Format,
    #[error("damaged: the digest differs")]
    Digest,
    #[error("damaged: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// The last good state; none when there is no file, or, with a warning, when it cannot be used.
pub(super) async fn load(path: PathBuf) -> Vec<Resource> {
    let shown = path.display().to_string();
    match tokio::task::spawn_blocking(move || read(&path)).await {
        Ok(Ok(resources)) => resources,
        Ok(Err(LoadError::Io(error))) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Ok(Err(error)) => {
            tracing::warn!(file = shown, %error, "starting without the last good state");
            Vec::new()
        }
        // Only when the runtime ends.
        Err(_) => Vec::new(),
    }
}

fn read(path: &Path) -> Result<Vec<Resource>, LoadError> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    decode(&bytes)
}

fn decode(bytes: &[u8]) -> Result<Vec<Resource>, LoadError> {
    let rest = bytes.strip_prefix(FORMAT).ok_or(LoadError::Format)?;
    let (expected, message) = rest.split_at_checked(DIGEST_BYTES).ok_or(LoadError::Format)?;
    if digest(&SHA256, message).as_ref() != expected {
        return Err(LoadError::Digest);
    }
    Ok(LastGood::decode(message)?.resources)
}

fn encode(resources: &[Arc<Resource>]) -> Vec<u8> {
    let state = LastGood { resources: resources.iter().map(|resource| resource.as_ref().clone()).collect() };
    let message = state.encode_to_vec();
    [FORMAT, digest(&SHA256, &message).as_ref(), &message].concat()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&temporary)?;
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()
}

/// Writes what has been applied, a while after it changed.
pub(super) async fn keep_written(path: PathBuf, shared: Arc<Shared>) {
    loop {
        shared.dirty.notified().await;
        while shared.state().version() != *shared.written.borrow() {
            tokio::time::sleep(WRITE_DELAY).await;
            if let Err(error) = write_once(&path, &shared).await {
                tracing::warn!(file = %path.display(), %error, "cannot write the state down, trying again");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

async fn write_once(path: &Path, shared: &Arc<Shared>) -> io::Result<()> {
    let (version, resources) = {
        let state = shared.state();
        (state.version(), state.resources())
    };
    let path = path.to_owned();
    let writing = tokio::task::spawn_blocking(move || write(&path, &encode(&resources)));
    writing.await.map_err(io::Error::other)??;
    shared.written.send_replace(version);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn resources() -> Vec<Arc<Resource>> {
        let resource = |name: &str| Resource { name: name.to_owned(), version: vec![7], resource: None };
        vec![Arc::new(resource("mesh")), Arc::new(resource("trust/east.mesh.example"))]
    }

    #[test]
    fn a_written_state_is_read_back_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(folder.path().join("state.new"), b"left over by a crash").unwrap();
        write(&path, &encode(&resources())).unwrap();
        assert_eq!(read(&path).unwrap(), resources().iter().map(|it| it.as_ref().clone()).collect::<Vec<_>>());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_damaged_or_foreign_file_is_no_state() {
        let good = encode(&resources());
        assert!(decode(&good).is_ok());
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x40;
            assert!(decode(&bad).is_err(), "byte {index}");
            assert!(decode(&good[..index]).is_err(), "cut at {index}");
        }
    }
}
