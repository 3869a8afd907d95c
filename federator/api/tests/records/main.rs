//! Tokens, memberships, signed records and sets of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod audits;
mod conversions;
mod deny_list;
mod departures;
mod fixture;
mod keys;
mod members;
mod sets;
mod statements;
mod tokens;
