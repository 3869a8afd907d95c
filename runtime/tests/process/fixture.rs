//! A program to look at from outside.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_runtime::{Configuration, Process, RuntimeConfig};
use serde::Deserialize;
use tempfile::TempDir;

/// How long anything here may take before its test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A configuration with nothing but the runtime's part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bare {
    #[serde(default)]
    pub(crate) runtime: RuntimeConfig,
}

impl Configuration for Bare {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }
}

/// A program that runs in a thread; told to end when dropped.
pub(crate) struct Running {
    pub(crate) process: Process,
    thread: Option<JoinHandle<ExitCode>>,
    _directory: TempDir,
}

/// Addresses that the kernel chooses, two of them.
pub(crate) const SEPARATE: &str = "admin: 127.0.0.1:0, health: '[::1]:0'";

/// Starts a program with the given fields of `runtime`.
pub(crate) fn start<F, Fut>(runtime: &str, main: F) -> Running
where
    F: FnOnce(Process) -> Fut + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fixture.yaml");
    std::fs::write(&file, format!("runtime: {{ {runtime} }}\n")).unwrap();
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        mesh_runtime::run("a-fixture", &file, |_: Bare, process| {
            send.send(process.clone()).unwrap();
            main(process)
        })
    });
    let process = receive.recv_timeout(PATIENCE).unwrap();
    Running { process, thread: Some(thread), _directory: directory }
}

impl Running {
    pub(crate) fn admin(&self, path: &str) -> Answer {
        request(self.process.admin_address().unwrap(), path)
    }

    pub(crate) fn health(&self, path: &str) -> Answer {
        request(self.process.health_address().unwrap(), path)
    }

    /// Waits for the program's end.
    pub(crate) fn end(mut self) -> ExitCode {
        eventually("the program ends", || self.has_ended());
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.trigger_drain();
    }
}

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

pub(crate) fn request(address: SocketAddr, path: &str) -> Answer {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: fixture\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// Polls until the condition holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
