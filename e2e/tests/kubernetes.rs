//! Two clusters with real API servers, shared by every test: they take turns.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "kubernetes/both.rs"]
mod both;
#[path = "kubernetes/chaos.rs"]
mod chaos;
#[path = "kubernetes/exports.rs"]
mod exports;
#[path = "kubernetes/manifests.rs"]
mod manifests;
#[path = "kubernetes/objects.rs"]
mod objects;
#[path = "kubernetes/proxies.rs"]
mod proxies;
#[path = "kubernetes/replicas.rs"]
mod replicas;
#[path = "kubernetes/rights.rs"]
mod rights;
#[path = "kubernetes/schema.rs"]
mod schema;
#[path = "kubernetes/silence.rs"]
mod silence;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use e2e::kubernetes::KubernetesLab;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Its threads start the processes, which end with them: with this program.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

static LAB: LazyLock<Result<Arc<Mutex<KubernetesLab>>, String>> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubernetes");
    let starting = RUNTIME.spawn(async move {
        let _ = std::fs::remove_dir_all(&directory);
        KubernetesLab::start(&directory, &["east", "west"]).await
    });
    let lab = std::thread::spawn(|| RUNTIME.block_on(starting)).join().unwrap().unwrap();
    lab.map(|lab| Arc::new(Mutex::new(lab))).map_err(|error| format!("{error:#}"))
});

/// Runs a test with the lab to itself.
fn with_lab<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(OwnedMutexGuard<KubernetesLab>) -> F) {
    let lab = LAB.as_ref().unwrap_or_else(|error| panic!("{error}"));
    let guard = RUNTIME.block_on(Arc::clone(lab).lock_owned());
    RUNTIME.block_on(RUNTIME.spawn(test(guard))).unwrap();
}
