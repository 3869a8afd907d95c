//! Dropping every packet between one cluster and everybody else, in both directions, as a dead network does: no reset, no answer.
//!
//! A cluster's processes run in a group of their own ([`crate::lab::network::Block::group`]), so the kernel knows whose packet it
//! is. A connection is marked with the group that opened it: of an answer, only the mark tells between whom it travels.

use std::{io::Write, process::Command, process::Stdio};

use anyhow::{Context, ensure};

use crate::lab::network::Block;

const TABLE: &str = "isthmus_blackhole";

/// Begins to mark connections, those that are there with their next packet. In a network namespace of the bench's own.
pub(super) fn prepare(cluster: Block) -> anyhow::Result<()> {
    let group = group(cluster)?;
    nft(&format!(
        "table inet {TABLE} {{
chain marking {{ type filter hook output priority -150; ct direction original meta skgid {group} ct mark set {group}; }}
chain out {{ type filter hook output priority 0; }}
}}
"
    ))
}

/// From now on nothing arrives from the cluster, or there.
pub(super) fn begin(cluster: Block) -> anyhow::Result<()> {
    let (group, range) = (group(cluster)?, cluster.range());
    nft(&format!(
        "add rule inet {TABLE} out ct direction original meta skgid {group} ip daddr != {range} drop
add rule inet {TABLE} out ct direction original meta skgid != {group} ip daddr {range} drop
add rule inet {TABLE} out ct direction reply meta skgid {group} ct mark != {group} drop
add rule inet {TABLE} out ct direction reply meta skgid != {group} ct mark {group} drop
"
    ))
}

/// Everything passes again.
pub(super) fn heal() -> anyhow::Result<()> {
    nft(&format!("flush chain inet {TABLE} out\n"))
}

fn group(cluster: Block) -> anyhow::Result<u32> {
    cluster.group().context("needs root, to drop packets")
}

fn nft(script: &str) -> anyhow::Result<()> {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("nft")?;
    child.stdin.take().context("no input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
