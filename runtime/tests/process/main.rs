//! A program from its start to its end, over real sockets: in a thread where its handles are wanted, in a process of its
//! own where signals and exit codes are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod child;
mod drain;
mod endpoints;
mod fixture;
mod readiness;
mod signals;
