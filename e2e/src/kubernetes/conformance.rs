//! The official suite of the Multi-Cluster Services API, `sigs.k8s.io/mcs-api/conformance`, against two clusters.
//!
//! The suite's module has no version at the Go module proxy (mcs-api's own releases are cut without it), so it cannot be
//! pinned and built here: `MCS_CONFORMANCE` names the suite as it was compiled elsewhere (`go test -c` in its folder). What
//! the suite asks for is also asked by the tests of this workspace, which need nothing of the kind.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::Context;
use kube::config::Kubeconfig;
use tokio::process::Command;

use super::KubernetesLab;

/// Names the compiled suite.
const SUITE: &str = "MCS_CONFORMANCE";

/// What runs without commands in pods: there are no containers here. The one required spec among those that need some
/// has no label of its own.
const SPECS: [&str; 2] = ["--ginkgo.label-filter=!Connectivity && !DNS", "--ginkgo.skip=should be inaccessible"];

/// Runs the suite; fails when a spec fails.
///
/// # Errors
/// The suite is not named, or the clusters do not become ready.
pub async fn main() -> anyhow::Result<ExitCode> {
    let suite = std::env::var_os(SUITE).map(PathBuf::from);
    let suite = suite.filter(|path| path.is_file()).with_context(|| {
        format!(
            "{SUITE} must name the compiled suite: `go test -c` in the folder conformance of kubernetes-sigs/mcs-api"
        )
    })?;
    let directory = std::env::temp_dir().join(format!("isthmus-conformance-{}", std::process::id()));
    let mut lab = KubernetesLab::start(&directory, &["east", "west"]).await?;
    let outcome = run(&suite, &lab).await;
    lab.stop().await;
    let code = outcome?;
    if code == ExitCode::SUCCESS {
        std::fs::remove_dir_all(&directory)?;
    }
    Ok(code)
}

async fn run(suite: &Path, lab: &KubernetesLab) -> anyhow::Result<ExitCode> {
    let [east, west] = lab.clusters.as_slice() else { anyhow::bail!("two clusters") };
    let merged = Kubeconfig::read_from(east.servers.administrator())?
        .merge(Kubeconfig::read_from(west.servers.administrator())?)?;
    let file = lab.directory().join("both.kubeconfig");
    std::fs::write(&file, serde_json::to_string(&merged)?)?;
    let mut command = Command::new(suite);
    command.arg(format!("--kubeconfig={}", file.display())).arg("--contexts=east,west").args(SPECS);
    command.arg("--ginkgo.v").current_dir(lab.directory()).stdin(Stdio::null()).kill_on_drop(true);
    let status = command.status().await.with_context(|| suite.display().to_string())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
