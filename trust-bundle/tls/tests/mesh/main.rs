//! Judging chains, and real sockets that do it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod calls;
mod chains;
mod domain;
mod guarding;
mod handshakes;
