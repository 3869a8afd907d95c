//! The programs of Kubernetes: found, never built by a test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Assets {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub api_server: PathBuf,
    /// kube-controller-manager.
    pub controllers: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
}

impl Assets {
    /// Looks into `KUBEBUILDER_ASSETS`, then into the cache that `make tools` fills, and for etcd into `PATH`.
    ///
    /// # Errors
    /// One is missing; the error says how to get it.
    pub fn find() -> anyhow::Result<Self> {
        let given = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let built = cached();
        let find = |program: &str| {
            let folders = given
                .iter()
                .chain(&built)
                .map(PathBuf::as_path)
                .chain([Path::new("/usr/bin"), Path::new("/usr/local/bin")]);
            let found = folders.map(|folder| folder.join(program)).find(|path| path.is_file());
            found.with_context(|| format!("{program} is missing: run `make tools`, or set KUBEBUILDER_ASSETS"))
        };
        Ok(Self {
            etcd: find("etcd")?,
            api_server: find("kube-apiserver")?,
            controllers: find("kube-controller-manager")?,
            kubectl: find("kubectl")?,
        })
    }

    /// The version that the API server says it is.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.api_server).arg("--version").output()?;
        ensure!(output.status.success(), "{} --version failed", self.api_server.display());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The newest folder that `e2e/kubernetes/build.sh` has filled.
fn cached() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    let folders = std::fs::read_dir(cache.join("isthmus/kubernetes")).ok()?;
    let complete =
        folders.flatten().map(|entry| entry.path()).filter(|path| path.join("kube-controller-manager").is_file());
    complete.max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
}
