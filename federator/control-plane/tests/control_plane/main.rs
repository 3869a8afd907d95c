//! A control-plane from its inputs to its effects: pure first, then over sockets, against a small federation in this
//! process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod attacks;
mod federation_fake;
mod member;
mod plane;
mod program;
mod proxy;
mod reconcile;
mod rotation;
mod standing;
