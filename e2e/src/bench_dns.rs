//! `federation-dns` beside Knot DNS: the same zone, the same questions, one worker each.
//!
//! ```text
//!   dnsperf ──► server under test, its own process clock
//!      └── services, missing families, SRV, headless sets, names that are not there
//! ```
//!
//! The servers are visited in turn, every second round backwards. What is compared is processor time of the server per query, in
//! medians over the rounds: its inverse is the queries per second of one core. Before, both give the same answers.

mod server;
mod zone;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use federation_dns::Transport;

use crate::bench::clock::Processes;
use crate::bench::{Goal, conclude, median};
use server::{Peer, Server};

/// The most processor time per query, in Knot's: 0.8 times its queries per second and core.
const GOAL: f64 = 1.25;

/// Clients of the load, each with a socket or connection of its own.
const CLIENTS: &str = "8";

/// Queries without an answer yet, over all clients.
const OUTSTANDING: &str = "256";

/// Questions whose answers are compared before the load.
const COMPARED: usize = 25;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Rounds; the figures are medians over them.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of load at each visit.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Exit with 1 when the goal is missed.
    #[arg(long, env = "STRICT", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0", action = clap::ArgAction::Set)]
    strict: bool,
}

#[derive(Subcommand)]
enum Role {
    /// Answers the zone of the bench.
    Serve {
        /// Where.
        listen: SocketAddr,
    },
}

/// The program.
///
/// # Errors
/// A server cannot be started, or they disagree.
pub fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::Serve { listen }) => server::answer(listen).map(|()| ExitCode::SUCCESS),
        None => bench(&arguments),
    }
}

/// What one visit has shown.
#[derive(Clone, Copy)]
struct Visit {
    /// Of the server, in microseconds.
    cpu_per_query: f64,
    /// As the load saw it.
    per_second: f64,
    /// In per cent.
    lost: f64,
}

fn bench(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut screen = std::io::stdout();
    let directory = tempfile::Builder::new().prefix("isthmus-bench-dns-").tempdir()?;
    let questions = directory.path().join("questions");
    std::fs::write(&questions, zone::questions())?;
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _inside = runtime.enter();
    let mut servers = Vec::new();
    for (peer, port) in [(Peer::Knot, 5301), (Peer::Isthmus, 5302)] {
        let listen = SocketAddr::from((Ipv4Addr::new(127, 250, high, low), port));
        servers.push(Server::start(peer, listen, directory.path())?);
    }
    compare(&servers)?;
    writeln!(
        screen,
        "{:>5} {:>9} {:>8} {:>14} {:>12} {:>7}",
        "round", "transport", "server", "CPU µs/query", "queries/s", "lost %"
    )?;
    let mut goals = Vec::new();
    for (transport, rounds) in [(Transport::Udp, arguments.rounds), (Transport::Tcp, arguments.rounds.div_ceil(2))] {
        let mut visits: Vec<(Peer, Visit)> = Vec::new();
        for round in 0..rounds {
            let mut order: Vec<&Server> = servers.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for server in order {
                let visit = load(server, transport, &questions, Duration::from_secs(arguments.seconds))?;
                let Visit { cpu_per_query, per_second, lost } = visit;
                let (name, over) = (server.peer.name(), word(transport));
                writeln!(
                    screen,
                    "{:>5} {over:>9} {name:>8} {cpu_per_query:>14.3} {per_second:>12.0} {lost:>7.2}",
                    round + 1
                )?;
                visits.push((server.peer, visit));
            }
        }
        let of =
            |peer: Peer| median(visits.iter().filter(|(of, _)| *of == peer).map(|(_, it)| it.cpu_per_query).collect());
        let (knot, isthmus) = (of(Peer::Knot), of(Peer::Isthmus));
        if let (Some(knot), Some(isthmus)) = (knot, isthmus) {
            let (over, knot, isthmus) = (word(transport), 1e6 / knot, 1e6 / isthmus);
            let times = isthmus / knot;
            writeln!(
                screen,
                "{over}: isthmus {isthmus:.0}, knot {knot:.0} queries per second and core: {times:.2} times knot"
            )?;
        }
        let ratio = knot.zip(isthmus).map(|(knot, isthmus)| isthmus / knot);
        let name = format!("dns_{}_cpu_per_query_over_knot", word(transport));
        goals.push(match transport {
            Transport::Udp => Goal::new(name, ratio, GOAL),
            Transport::Tcp => Goal::stretch(name, ratio, GOAL),
        });
    }
    Ok(conclude(&goals, arguments.strict)?)
}

const fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    }
}

/// Refuses servers that do not answer alike.
fn compare(servers: &[Server]) -> anyhow::Result<()> {
    let questions = zone::questions();
    let lines: Vec<&str> = questions.lines().collect();
    for line in lines.iter().step_by(lines.len() / COMPARED) {
        let answers: Vec<_> = servers.iter().map(|server| server.ask(line)).collect::<anyhow::Result<_>>()?;
        ensure!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{line} is answered {answers:#?}");
    }
    Ok(())
}

fn load(server: &Server, transport: Transport, questions: &Path, time: Duration) -> anyhow::Result<Visit> {
    let processes = Processes::of(server.id()?);
    let (address, port) = (server.listen.ip().to_string(), server.listen.port().to_string());
    let before = processes.cpu();
    let output = Command::new("dnsperf")
        .args(["-m", word(transport), "-s", &address, "-p", &port, "-e", "-c", CLIENTS, "-T", "1", "-q", OUTSTANDING])
        .args(["-l", &time.as_secs().to_string(), "-S", "0", "-d"])
        .arg(questions)
        .output()
        .context("dnsperf is missing: `make bench-dns` installs it")?;
    let cpu = processes.cpu().saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout);
    let told = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        number.with_context(|| {
            format!("dnsperf does not say {name:?}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    };
    let (sent, completed) = (told("Queries sent:")?, told("Queries completed:")?);
    ensure!(completed > 1000.0, "{} hardly answers: {text}", server.peer.name());
    Ok(Visit {
        cpu_per_query: cpu.as_secs_f64() * 1e6 / completed,
        per_second: told("Queries per second:")?,
        lost: (sent - completed).max(0.0) * 100.0 / sent,
    })
}

/// This program, which serves as well.
fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("this program has no path")
}
