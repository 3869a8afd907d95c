//! The contracts on every wire, the join token, and signed records.

mod generated;
mod redacted;

pub use generated::{discovery, federation, mesh, record, trust};
