//! Reading a ClientHello and copying bytes: what a proxy does that routes TLS without ending it.
//!
//! ```text
//!  client ──► read_client_hello ──► (ClientHello, bytes) ──► the caller picks a peer by SNI
//!                   │                                              │ writes the bytes to it
//!                   └─ refusal: alert, then an orderly close       ▼
//!  client ◄══════════════════════ relay ═══════════════════════► peer
//! ```
//!
//! The reader is a state machine without input or output, [`ClientHelloReader`]; [`read_client_hello`] drives it over
//! a stream with a deadline. [`relay`] copies between two TCP streams and [`relay_streams`] between any two.
//!
//! What always holds:
//! - Bytes of a peer cannot panic this crate, and what it keeps of them is bounded: a hello by
//!   [`HelloLimits::max_bytes`], each direction of a relay by one buffer of 64 KiB or one pipe of 1 MiB.
//! - A hello's outcome depends on its bytes alone, never on how records or TCP segments cut them.
//! - A connection with nothing to copy holds neither buffer nor pipe; a wake-up allocates nothing.
//! - The end of one direction is passed on alone (half-close); a reset on one side resets the other.

mod client_hello;
mod copy;
mod proxy_header;
mod read;
mod refuse;
mod socket;

/// Fatal TLS alerts as the bytes of a whole record (RFC 8446, sections 5.1 and 6), ready to be written before any key exists.
pub mod alert;

pub use client_hello::{ClientHello, ClientHelloError, ClientHelloReader};
pub use copy::{
    Record, RelayEnd, RelayOptions, Relayed, SETTLED, Side, pipes, relay, relay_observed, relay_streams, reset_on_close,
};
pub use proxy_header::{MAX_PROXY_HEADER, ProxyHeader, ProxyHeaderError, read_proxy_header};
pub use read::{HelloLimits, ReadHelloError, read_client_hello};
pub use refuse::{REFUSAL_LINGER, refuse};
pub use socket::{SocketOptions, configure};
