//! The servers under test.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwap;
use federation_dns::Metrics;
use tokio::net::{TcpListener, UdpSocket};

use super::{own_program, zone};
use crate::lab::process::{Plan, Process};

/// How long a server may take to answer the first question.
const READY: Duration = Duration::from_secs(20);

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// `knotd`.
    Knot,
    /// This program, in the role that serves.
    Isthmus,
}

impl Peer {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Knot => "knot",
            Self::Isthmus => "isthmus",
        }
    }
}

/// A server that runs.
pub(super) struct Server {
    pub(super) peer: Peer,
    pub(super) listen: SocketAddr,
    process: Process,
}

impl Server {
    pub(super) fn start(peer: Peer, listen: SocketAddr, directory: &Path) -> anyhow::Result<Self> {
        let home = directory.join(peer.name());
        std::fs::create_dir_all(&home)?;
        let (program, arguments) = match peer {
            Peer::Knot => {
                let config = home.join("knot.conf");
                std::fs::write(&config, knot(listen, &home)?)?;
                ("/usr/sbin/knotd".into(), vec!["-c".to_owned(), config.display().to_string()])
            }
            Peer::Isthmus => (own_program()?, vec!["serve".to_owned(), listen.to_string()]),
        };
        let log = home.join("log");
        let process =
            Process::start(Plan { name: peer.name().to_owned(), program, arguments, log: log.clone(), health: None })?;
        let server = Self { peer, listen, process };
        let started = Instant::now();
        while let Err(error) = server.ask("clusterset.local SOA") {
            ensure!(started.elapsed() < READY, "{error:#}\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    pub(super) fn id(&self) -> anyhow::Result<u32> {
        self.process.id().with_context(|| format!("{} has ended", self.peer.name()))
    }

    /// The status and the sorted answer to `NAME TYPE`.
    pub(super) fn ask(&self, question: &str) -> anyhow::Result<(String, Vec<String>)> {
        let (name, of) = question.split_once(' ').context("a question is a name and a type")?;
        let (at, port) = (format!("@{}", self.listen.ip()), self.listen.port().to_string());
        let output = Command::new("dig")
            .args([&at, "-p", &port, "+norecurse", "+time=1", "+tries=1", "+noall", "+comments", "+answer", name, of])
            .output()
            .context("dig is missing: run `make tools`")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some((_, status)) = text.split_once("status: ") else { bail!("{question}: no answer: {text}") };
        let records = text.lines().filter(|line| !line.is_empty() && !line.starts_with(';'));
        let mut records: Vec<String> =
            records.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        records.sort();
        Ok((status.split(',').next().unwrap_or_default().to_owned(), records))
    }
}

fn knot(listen: SocketAddr, home: &Path) -> anyhow::Result<String> {
    let file = home.join("clusterset.local.zone");
    std::fs::write(&file, zone::file()?)?;
    let (address, port, home, file) = (listen.ip(), listen.port(), home.display(), file.display());
    Ok(format!(
        "server:\n  listen: {address}@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n  rundir: {home}\n\
         database:\n  storage: {home}\n\
         log:\n  - target: stderr\n    any: warning\n\
         zone:\n  - domain: clusterset.local\n    file: {file}\n    zonefile-sync: -1\n    journal-content: none\n"
    ))
}

/// Answers on one thread until the process is killed.
pub(super) fn answer(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let zone = Arc::new(ArcSwap::from_pointee(zone::zone()?));
        let (udp, tcp) = (UdpSocket::bind(listen).await?, TcpListener::bind(listen).await?);
        let forever = std::future::pending::<()>();
        Ok(federation_dns::serve(zone, vec![udp], vec![tcp], Metrics::default(), forever).await?)
    })
}
