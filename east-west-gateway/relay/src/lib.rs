//! ClientHello reading and the byte relay.
