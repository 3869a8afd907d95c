//! Sessions to other sidecars.
//!
//! ```text
//!  Path (cluster, endpoint or gateway + slot, SNI, identities)
//!    ├─ Dialer: address ─► TCP ─► TLS (the peer proves its identity) ─► verdict (the server speaks first)
//!    └─ Sessions: HTTP/2, shared by requests;  opaque connections dial one each
//!
//!  Path to an endpoint of the own cluster without a sidecar
//!    └─ Dialer: address ─► TCP;  for HTTP behind a stand-in, which speaks HTTP/2 on this side
//! ```

pub(crate) mod dial;
pub(crate) mod path;
pub(crate) mod peer;
pub(crate) mod pool;
pub(crate) mod resolver;
pub(crate) mod stand_in;
pub(crate) mod stream;
