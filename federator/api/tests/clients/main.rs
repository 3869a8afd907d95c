//! The clients against a server on a loopback socket that drops connections, restarts, goes silent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod discovery;
mod server;
mod session;
mod trust;
