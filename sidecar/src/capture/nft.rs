//! Running `nft`.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

/// `nft` did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// It could not be run.
    #[error("nft (package nftables) cannot be run: {0}")]
    Run(io::Error),
    /// It refused.
    #[error("nft: {0}")]
    Refused(String),
}

/// Runs a script in one transaction.
pub(super) fn run(script: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Run)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).map_err(NftError::Run)?;
    }
    let output = child.wait_with_output().map_err(NftError::Run)?;
    if output.status.success() { Ok(()) } else { Err(refused(&output)) }
}

/// A table, as text; `None` if there is none.
pub(super) fn list(table: &str) -> Result<Option<String>, NftError> {
    let (family, name) = table.split_once(' ').unwrap_or(("inet", table));
    let tables = output(&["list", "tables", family])?;
    if !tables.lines().any(|line| line.trim() == format!("table {family} {name}")) {
        return Ok(None);
    }
    output(&["list", "table", family, name]).map(Some)
}

/// The elements of a set, as text; `None` if it is not there or has none.
pub(super) fn elements(table: &str, set: &str) -> Result<Option<String>, NftError> {
    let Some(text) = list(table)? else { return Ok(None) };
    let own = text.split_once(&format!("set {set} {{")).and_then(|(_, rest)| rest.split_once("\n\t}"));
    let elements = own.and_then(|(body, _)| body.split_once("elements = {")?.1.split_once('}'));
    Ok(elements.map(|(elements, _)| elements.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn output(arguments: &[&str]) -> Result<String, NftError> {
    let output = Command::new("nft").args(arguments).stdin(Stdio::null()).output().map_err(NftError::Run)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(refused(&output))
    }
}

fn refused(output: &Output) -> NftError {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
    NftError::Refused(if lines.is_empty() { output.status.to_string() } else { lines.join(" | ") })
}
