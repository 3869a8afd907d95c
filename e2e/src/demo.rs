//! The demo: one story that an operator would live through, told live.
//!
//! ```text
//!   join ─► export ─► DNS ─► a local call ─► a call across clusters ─► a page view across all of them
//!        ─► 200 requests a second while things die, one after another ─► unexport ─► the table
//! ```

pub mod faults;
pub mod screen;
pub mod story;
pub mod table;
