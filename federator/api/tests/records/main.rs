//! Tokens, memberships, signed records and sets of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conversions;
mod deny_list;
mod fixture;
mod keys;
mod members;
mod sets;
mod statements;
mod tokens;
