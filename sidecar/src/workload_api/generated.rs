//! Generated from `proto/workload.proto`; `UPDATE=1 cargo test -p sidecar --test generated` rewrites it.

#![expect(unreachable_pub, clippy::too_many_lines, reason = "generated code")]

include!("generated/server.rs");
