//! The control-plane in a Kubernetes cluster.
//!
//! ```text
//!   Lease ── Election: one replica runs, the others wait
//!   API server ══ watches ══► source::KubernetesSource ──► Reconciler ──► Snapshot
//!        ▲                                                                   │
//!        └── server-side apply: ServiceImports, statuses, EndpointSlices, Clusters ◄── Writer
//!                               the ConfigMap of the cluster's own roots ◄── tell_roots; policies' `Accepted` ◄── tell_policies
//!   TokenReview ◄── Reviewer ◄── a proxy's service-account token
//! ```
//!
//! - A replica that waits for the Lease has opened nothing: the state directory, the membership and the federation see one
//!   control-plane at a time. Losing the Lease ends the program.
//! - What is written is compared with what is there first: a restart writes nothing that is right already.
//! - No finalizers: everything that is written lies in this cluster and is looked after by whoever holds the Lease.
//!   EndpointSlices belong to their ServiceImport, so they go with it.
//! - A control-plane that lost its disk takes the addresses that the ServiceImports have: clients go on with them.

mod attestor;
mod election;
mod policies;
mod roots;
mod standing;
pub mod writer;

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Config};
use serde::Deserialize;

use crate::discovery::SYSTEM_NAMESPACE;

pub use attestor::Reviewer;
pub use election::{Election, Term};
pub use policies::tell_policies;
pub use roots::{ROOTS_CONFIG_MAP, ROOTS_KEY, tell_roots};
pub use standing::{StandingError, standing_addresses};
pub use writer::Writer;

/// Who has written a field, for server-side apply and in events.
pub const FIELD_MANAGER: &str = "isthmus.dev/control-plane";

/// Marks objects that the control-plane writes and may remove.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "isthmus");

/// A watch is opened anew after so many seconds. A dead connection is noticed five seconds later at most: within 30.
const WATCH_SECONDS: u32 = 25;

/// No answer, and no event or bookmark of a watch, may take longer: more than a watch's own end.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long connecting to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The cluster's API, in place of directories of manifests.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct KubernetesConfig {
    /// How to reach the API server; without: `KUBECONFIG`, `~/.kube/config`, or the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// The control-plane's own namespace, where its Lease is.
    pub namespace: String,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self { kubeconfig: None, namespace: SYSTEM_NAMESPACE.to_owned() }
    }
}

/// Why the API server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig is not usable.
    #[error("kubernetes.kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// There is neither a kubeconfig nor a service account.
    #[error("kubernetes: {0}")]
    Infer(#[from] kube::config::InferConfigError),
    /// What it says makes no client.
    #[error("kubernetes: {0}")]
    Client(#[from] kube::Error),
}

/// A client. Nothing is sent yet.
///
/// # Errors
/// [`ConnectError`]
pub async fn connect(config: &KubernetesConfig) -> Result<Client, ConnectError> {
    let mut client = match &config.kubeconfig {
        Some(path) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?
        }
        None => Config::infer().await?,
    };
    client.connect_timeout = Some(CONNECT_TIMEOUT);
    client.read_timeout = Some(READ_TIMEOUT);
    client.reset_reader_on_write = true;
    Ok(Client::try_from(client)?)
}

/// How every kind is watched.
pub(crate) fn watching() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}
