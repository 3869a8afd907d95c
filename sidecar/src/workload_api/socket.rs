//! The socket as a file: made whole, taken over from a dead process, never from a live one, removed at the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// Owner and group; see the module above.
const MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Something else has its name.
    #[error("{} is there and is no socket", .0.display())]
    Foreign(PathBuf),
    /// Another process answers at it.
    #[error("another process answers at {}", .0.display())]
    Occupied(PathBuf),
    /// It cannot be made.
    #[error("{}: {problem}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        problem: io::Error,
    },
}

/// A listening socket, and the file that leads to it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: a later process may have put its own in place.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`. What a dead process left there is replaced, at once: nobody finds it missing.
    ///
    /// # Errors
    /// When something else is there, or it cannot be made.
    pub(crate) async fn bind(path: &Path) -> Result<Self, SocketError> {
        refuse_living(path).await?;
        // Made under another name, so that it is never found with other permissions than its own.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let fresh = PathBuf::from(name);
        let at = |path: &Path| {
            let path = path.to_owned();
            move |problem| SocketError::Io { path, problem }
        };
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&fresh)(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(at(&fresh))?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(MODE)).map_err(at(&fresh))?;
        let metadata = std::fs::symlink_metadata(&fresh).map_err(at(&fresh))?;
        std::fs::rename(&fresh, path).map_err(at(path))?;
        Ok(Self { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

/// Passes when nothing is at `path`, or what a dead process left.
async fn refuse_living(path: &Path) -> Result<(), SocketError> {
    let io = |problem| SocketError::Io { path: path.to_owned(), problem };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::Foreign(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(io(error)),
        // It answers, or would with a shorter queue.
        _ => Err(SocketError::Occupied(path.to_owned())),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            warn!(socket = %self.path.display(), %error, "the socket stays behind");
        }
    }
}
