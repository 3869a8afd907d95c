//! Every rule with something that breaks it, and beside it something that differs in that one thing and is accepted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod authorities;
mod bundle_sets;
mod bundles;
mod certificates;
mod federations;
mod ids;
mod leaves;
mod rotations;
