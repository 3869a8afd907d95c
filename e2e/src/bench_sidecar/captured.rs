//! The kernel hands every pair the load's connections in the same way, as it does for an application that knows nothing.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

/// Whose addresses are captured.
const RANGE: &str = "241.0.0.0/8";
const TABLE: &str = "isthmus_bench";

/// Where the load's connections go by the address that they ask for.
pub(super) type Redirects = Vec<(Ipv4Addr, SocketAddr)>;

/// Makes the captured range routable. Refuses where other traffic could be touched: only `lo` may be there.
pub(super) fn prepare() -> anyhow::Result<()> {
    let links = run("ip", &["-o", "link", "show"], "")?;
    ensure!(links.lines().count() == 1, "to be run in a network namespace of its own: `make bench-sidecar`");
    run("ip", &["route", "replace", RANGE, "dev", "lo", "src", "127.0.0.1"], "").map(drop)
}

/// Replaces what is captured.
pub(super) fn redirect(redirects: &Redirects) -> anyhow::Result<()> {
    let rules: String =
        redirects.iter().map(|(from, to)| format!("ip daddr {from} meta l4proto tcp dnat to {to}\n")).collect();
    let script = format!(
        "table ip {TABLE} {{}}\ndelete table ip {TABLE}\n\
         table ip {TABLE} {{\nchain out {{\ntype nat hook output priority -100;\n{rules}}}\n}}\n"
    );
    run("nft", &["-f", "-"], &script).map(drop)
}

fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(shown)?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes()).with_context(shown)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}: {}", shown(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
