//! The contracts on every wire, the join token, and signed records.
