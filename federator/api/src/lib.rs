//! The contracts on every wire, the join token, and signed records.
pub mod client;
pub mod convert;
pub mod deny_list;
mod generated;
pub mod payload;
pub mod records;
mod redacted;
pub mod signing;
pub mod token;
mod unix;
pub mod verdict;
pub mod verify;

pub use generated::{discovery, federation, mesh, record, trust};
