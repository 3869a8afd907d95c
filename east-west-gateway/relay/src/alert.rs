/// Content type `alert`, the record version every TLS since 1.2 writes, two bytes, level `fatal`, and the description.
const fn fatal(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// A message that is not allowed where it came (10).
pub const UNEXPECTED_MESSAGE: [u8; 7] = fatal(10);
/// A record longer than 2^14 bytes (22).
pub const RECORD_OVERFLOW: [u8; 7] = fatal(22);
/// A field that is well-formed but not allowed (47).
pub const ILLEGAL_PARAMETER: [u8; 7] = fatal(47);
/// A message whose lengths do not fit together (50).
pub const DECODE_ERROR: [u8; 7] = fatal(50);
/// A protocol version nobody here speaks (70).
pub const PROTOCOL_VERSION: [u8; 7] = fatal(70);
/// A failure that is not the peer's fault, such as an endpoint that cannot be reached (80).
pub const INTERNAL_ERROR: [u8; 7] = fatal(80);
/// An extension that is required here, such as the server name, is missing (109).
pub const MISSING_EXTENSION: [u8; 7] = fatal(109);
/// No server of the name that was asked for (112).
pub const UNRECOGNIZED_NAME: [u8; 7] = fatal(112);
