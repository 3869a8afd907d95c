//! Trust that is taken away, and keys that are replaced, while clusters talk to each other: real processes, real sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "scenarios/killed.rs"]
mod killed;
#[path = "scenarios/quarantine.rs"]
mod quarantine;
#[path = "scenarios/rotation.rs"]
mod rotation;

/// What is measured here is time: one lab at once.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
