//! One child process of the lab.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::wait;
use crate::client;

/// How long a process may take to end after SIGTERM before it is killed.
const STOP: Duration = Duration::from_secs(6);
/// How many of the last lines of a log an error shows.
const LOG_LINES: usize = 12;

/// How a process is started, and started again after it died.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name in logs and errors, unique in the lab.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its log; appended to.
    pub log: PathBuf,
    /// Where `/readyz` is served, if the program has it.
    pub health: Option<SocketAddr>,
}

impl Plan {
    /// The same in a group of its own, if one is given.
    #[must_use]
    pub fn in_group(self, group: Option<u32>) -> Self {
        let Some(group) = group else { return self };
        let program = self.program.display().to_string();
        // A change of group makes the kernel forget what is to happen when the parent dies: so it is said again.
        let before = ["--regid", &group.to_string(), "--keep-groups", "--pdeathsig", "SIGKILL", "--", &program]
            .map(str::to_owned);
        let arguments = before.into_iter().chain(self.arguments).collect();
        Self { program: PathBuf::from("setpriv"), arguments, ..self }
    }
}

/// A process, running or not.
#[derive(Debug)]
pub struct Process {
    plan: Plan,
    child: Option<Child>,
}

impl Process {
    /// Starts a process; it is killed when this is dropped, and by the kernel should the lab itself be killed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(plan: Plan) -> anyhow::Result<Self> {
        let mut process = Self { plan, child: None };
        process.restart()?;
        Ok(process)
    }

    /// Starts it again after it has ended.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.plan.log);
        let log = log.with_context(|| self.plan.log.display().to_string())?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "SIGKILL", "--"])
            .arg(&self.plan.program)
            .args(&self.plan.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{}: {}", self.plan.name, self.plan.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.plan.log
    }

    /// Waits until `/readyz` says so, or fails at once when the process has ended.
    ///
    /// # Errors
    /// It ended or did not become ready; the error shows the end of its log.
    pub async fn ready(&mut self, deadline: Duration) -> anyhow::Result<()> {
        let Some(health) = self.plan.health else { return Ok(()) };
        let name = self.plan.name.clone();
        let ready = wait::until(&name, deadline, || async move {
            let answer = client::get(health, "/readyz").await?;
            anyhow::ensure!(answer.status.is_success(), "{}", answer.body);
            Ok(())
        });
        let ended = async {
            match &mut self.child {
                Some(child) => child.wait().await.map(|status| status.to_string()).unwrap_or_default(),
                None => "not started".to_owned(),
            }
        };
        let outcome = tokio::select! {
            outcome = ready => outcome,
            status = ended => Err(anyhow::anyhow!("{name} ended: {status}")),
        };
        outcome.with_context(|| format!("{name}: the end of {}:\n{}", self.plan.log.display(), self.log_tail()))
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.plan.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id.and_then(Pid::from_raw) {
            // Between the look and the signal it may have ended by itself.
            let _ = kill_process(id, signal);
        }
    }

    /// SIGKILL, and waits until the kernel has it gone.
    ///
    /// # Errors
    /// It had ended before: then something else killed it.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        kill_all([self]).await
    }

    /// SIGTERM, then SIGKILL when it takes too long. `None` when it did not run.
    pub async fn stop(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let mut child = self.child.take()?;
        match tokio::time::timeout(STOP, child.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                let _ = child.kill().await;
                child.wait().await.ok()
            }
        }
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }
}

/// SIGKILL to all of them at once; returns when the kernel has every one gone.
///
/// # Errors
/// One had ended before: then something else killed it.
pub async fn kill_all<'a>(processes: impl IntoIterator<Item = &'a mut Process>) -> anyhow::Result<()> {
    let mut dying = Vec::new();
    for process in processes {
        let name = process.plan.name.clone();
        let mut child = process.child.take().with_context(|| format!("{name} does not run"))?;
        let before = child.try_wait()?;
        anyhow::ensure!(before.is_none(), "{name} had ended before it was killed: {before:?}");
        child.start_kill()?;
        dying.push((name, child));
    }
    for (name, mut child) in dying {
        let status = child.wait().await?;
        anyhow::ensure!(status.signal() == Some(Signal::KILL.as_raw()), "{name}: {status}");
    }
    Ok(())
}
