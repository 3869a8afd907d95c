//! Commands as an operator types them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use tokio::process::Command;

/// No command takes longer.
const COMMAND: Duration = Duration::from_secs(30);

/// The `isthmus` command, pointed at one control-plane.
#[derive(Debug, Clone)]
pub struct Operator {
    isthmus: PathBuf,
    socket: PathBuf,
}

impl Operator {
    /// For the control-plane whose admin socket is `socket`.
    #[must_use]
    pub fn new(isthmus: PathBuf, socket: PathBuf) -> Self {
        Self { isthmus, socket }
    }

    /// Runs `isthmus --admin SOCKET …`, returns what it printed.
    ///
    /// # Errors
    /// It failed; the error has what it wrote to stderr.
    pub async fn isthmus(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.socket.display().to_string();
        let mut all = vec!["--admin", socket.as_str()];
        all.extend(arguments);
        Self::run(&self.isthmus, &all).await
    }

    /// Runs `isthmus … -o json` and reads what it printed.
    ///
    /// # Errors
    /// As [`Operator::isthmus`], or it is not the JSON that was asked for.
    pub async fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let text = self.isthmus(&all).await?;
        serde_json::from_str(&text).with_context(|| format!("isthmus {arguments:?} printed {text}"))
    }

    /// Runs any program to its end.
    ///
    /// # Errors
    /// It cannot be started, takes too long, or fails.
    pub async fn run(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
        let shown = || format!("{} {}", program.file_name().unwrap_or_default().display(), arguments.join(" "));
        let running = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(COMMAND, running).await.with_context(shown)?.with_context(shown)?;
        ensure!(
            output.status.success(),
            "{} ended with {}: {}{}",
            shown(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
