//! The socket itself.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::UnixListener;

/// A bound admin socket; its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
}

/// Removes the file when the server ends.
struct Removal(PathBuf);

impl Drop for Removal {
    fn drop(&mut self) {
        // Nothing is left to be told; the next start removes what is left over.
        let _ = fs::remove_file(&self.0);
    }
}

impl AdminSocket {
    /// Binds the socket. A file that a dead process has left over is replaced; a live process keeps its own.
    ///
    /// # Errors
    /// The socket cannot be bound, or somebody serves on it.
    pub async fn bind(path: &Path) -> anyhow::Result<Self> {
        let failed = |error: io::Error| anyhow::anyhow!("adminSocket: cannot listen on {}: {error}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match tokio::net::UnixStream::connect(path).await {
            Ok(_) => return Err(failed(io::Error::new(io::ErrorKind::AddrInUse, "another process serves there"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => fs::remove_file(path).map_err(failed)?,
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let _removal = Removal(self.path);
        axum::serve(self.listener, router).with_graceful_shutdown(shutdown).await
    }
}
