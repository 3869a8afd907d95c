//! The same test binary as a program of its own, so that it can be signalled and its exit code seen.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use mesh_runtime::Process;
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Bare, PATIENCE, eventually};

const BEHAVIOUR: &str = "TEST_CHILD_BEHAVIOUR";
const CONFIG: &str = "TEST_CHILD_CONFIG";

/// Runs as the child: a no-op unless the tests below started it.
#[test]
#[ignore = "the program that other tests start"]
fn program() {
    let (Ok(behaviour), Some(config)) = (std::env::var(BEHAVIOUR), std::env::var_os(CONFIG)) else { return };
    let code = mesh_runtime::run("a-child", Path::new(&config), |_: Bare, process| behave(behaviour, process));
    // An ExitCode does not show its number, but equals what it was made from.
    let number = (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap();
    std::process::exit(number.into());
}

async fn behave(behaviour: String, process: Process) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    write!(out, "\nhealth={}\n", process.health_address().unwrap())?;
    out.flush()?;
    match behaviour.as_str() {
        "drain" => process.drain().signaled().await,
        "stuck" => {
            // Every worker, and main itself, blocked for good.
            for _ in 0..tokio::runtime::Handle::current().metrics().num_workers() + 1 {
                tokio::spawn(async { std::thread::park() });
            }
            process.drain().signaled().await;
            write!(out, "\ndraining\n")?;
            out.flush()?;
            loop {
                std::thread::park();
            }
        }
        "trace" => tracing::info_span!("request").in_scope(|| {}),
        "fail" => anyhow::bail!(std::io::Error::other("the disk is gone")),
        "panic" => panic!("a mistake of ours"),
        other => anyhow::bail!("unknown behaviour {other}"),
    }
    Ok(())
}

/// A started child; killed when dropped.
pub(crate) struct Program {
    child: Child,
    lines: BufReader<ChildStdout>,
    errors: Option<JoinHandle<String>>,
}

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
}

impl Program {
    pub(crate) fn start(config: &Path, behaviour: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::program", "--ignored", "--nocapture"])
            .env(BEHAVIOUR, behaviour)
            .env(CONFIG, config)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let stderr = child.stderr.take().unwrap();
        let errors = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap());
        Self { child, lines, errors: Some(errors) }
    }

    /// Reads the child's output up to the line that begins with `prefix`, and gives the rest of that line.
    pub(crate) fn wait_for(&mut self, prefix: &str) -> String {
        let (send, receive) = mpsc::channel();
        let lines = &mut self.lines;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut line = String::new();
                while lines.read_line(&mut line).unwrap() > 0 {
                    if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                        send.send(rest.to_owned()).unwrap();
                        return;
                    }
                    line.clear();
                }
            });
            receive.recv_timeout(PATIENCE).unwrap()
        })
    }

    pub(crate) fn health_address(&mut self) -> SocketAddr {
        self.wait_for("health=").parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the child's end.
    pub(crate) fn end(mut self) -> Ended {
        let mut status = None;
        eventually("the child ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let stderr = self.errors.take().unwrap().join().unwrap();
        Ended { code: status.unwrap().code(), stderr }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
